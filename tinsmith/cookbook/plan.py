"""What the rule train_cookbook asks of the config, answered by wildcards."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.config import Cookbook
from tinsmith.cookbook.recipes import ENVIRONMENT, check_arguments, find_recipe
from tinsmith.errors import TinsmithError
from tinsmith.runs import RunConfig, either


@dataclass(frozen=True, slots=True)
class CookbookPlan:
    """Of all runs, the stages that are recipes."""

    runs: Mapping[str, RunConfig]

    def check(self, source: str) -> None:
        """Refuse before any job what a recipe cannot take, where the cookbook is there to look;
        `source` is the config's file."""
        stages = list(self._stages())
        if not stages or not ENVIRONMENT.stamp.is_file():
            return
        packages = ENVIRONMENT.find_packages()
        for run, place, stage in stages:
            try:
                recipe = find_recipe(stage.recipe, packages)
                loads = place > 0 and stage.start == "previous"
                check_arguments(recipe, stage, run.config.lora.rank, loads)
            except TinsmithError as error:
                raise TinsmithError(f"{source}: stages[{place}]: {error}") from None

    def pattern(self) -> str:
        return either({stage.name for _, _, stage in self._stages()})

    def checkpoints(self, wildcards: Any) -> list[str]:
        """Those of the stages that the recipe's arguments name."""
        names = sorted({*self._stage(wildcards).references().values()})
        return [f"{self._folder(wildcards)}/{name}/checkpoint.json" for name in names]

    def reads(self, wildcards: Any) -> list[str]:
        """The log folders that the recipe finds beside its own."""
        return [f"{self._folder(wildcards)}/{n}/recipe" for n in self._stage(wildcards).reads]

    def files(self, wildcards: Any) -> list[str]:
        """The files that the recipe's arguments name, and its own where it is the user's."""
        stage = self._stage(wildcards)
        own = Path(*stage.recipe.split(".")).with_suffix(".py")
        named = dict.fromkeys([str(own), *stage.texts().values()])
        # Not Path.is_file, which fails on a text that is too long for a name.
        return [name for name in named if os.path.isfile(name)]

    def _stages(self) -> Iterator[tuple[RunConfig, int, Cookbook]]:
        for run in self.runs.values():
            for place, stage in enumerate(run.config.stages):
                if isinstance(stage, Cookbook):
                    yield run, place, stage

    def _stage(self, wildcards: Any) -> Cookbook:
        stage = self.runs[wildcards.run].stage(wildcards.stage)
        assert isinstance(stage, Cookbook), "the rule's stages are those of the pattern"
        return stage

    def _folder(self, wildcards: Any) -> str:
        return f"{self.runs[wildcards.run].config.results}/{wildcards.run}"
