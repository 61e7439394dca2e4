"""What the rule inspect_stage asks of the config, answered by wildcards."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinsmith.config import InspectTask
from tinsmith.environments import Environment
from tinsmith.runs import RunConfig, either, settings_json

ENVIRONMENT = Environment("inspect")


@dataclass(frozen=True, slots=True)
class InspectPlan:
    """Of all runs, the evaluations by Inspect AI."""

    runs: Mapping[str, RunConfig]

    def check(self) -> None:
        """Refuse before any job an environment of other packages, where there is one."""
        if any(run.config.inspect for run in self.runs.values()) and ENVIRONMENT.stamp.is_file():
            ENVIRONMENT.find_packages()

    def pattern(self) -> str:
        return either({task.name for run in self.runs.values() for task in run.config.inspect})

    def settings(self, wildcards: Any) -> str:
        run = self.runs[wildcards.run]
        return settings_json(run.inspect_settings(wildcards.stage, wildcards.evaluation))

    def files(self, wildcards: Any) -> list[str]:
        """The file that defines the task, where it is the user's, and those that arguments name."""
        task = self._task(wildcards)
        named = [task.task.partition("@")[0], *map(str, task.arguments.values())]
        return [name for name in named if os.path.isfile(name)]

    def _task(self, wildcards: Any) -> InspectTask:
        return self.runs[wildcards.run].inspect_task(wildcards.evaluation)
