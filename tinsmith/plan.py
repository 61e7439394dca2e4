"""What the rules ask of the config, answered by wildcards: settings, files, resources."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tinsmith.config import (
    Config,
    Cookbook,
    FileData,
    MonitorSettings,
    PathModel,
    ReportSettings,
    SetupSettings,
    TrackerSettings,
    check,
)
from tinsmith.config.environment import origins
from tinsmith.config.merging import merged, typed
from tinsmith.container_plan import ContainerPlan
from tinsmith.cookbook.plan import CookbookPlan
from tinsmith.errors import TinsmithError
from tinsmith.inspection.plan import InspectPlan
from tinsmith.named import check_named
from tinsmith.report.results import reported_files
from tinsmith.resources import Request
from tinsmith.runs import BASE, RunConfig, either, expand, settings_json
from tinsmith.user_code import source_files
from tinsmith.workflow import announce


def make_plan(command_line: Any) -> "Plan":
    """Check the config and the user's files that it names, before any job is planned.

    A file given by `--configfile` stands alone. `--config` changes keys of either, and replaces a
    section whose kind it changes, which is why the files are read here: Snakemake's own merge mixes
    the keys of both kinds. It also leaves the numbers in its lists as text.
    """
    files = [Path(path) for path in command_line.configfiles] or [Path("config.yaml")]
    values: Any = {}
    for file in files:
        values = merged(values, yaml.safe_load(file.read_text(encoding="utf-8")))
    values = merged(values, typed(command_line.config))
    name = ", ".join(file.name for file in files)
    runs = expand(check(values, name), name)
    try:
        for run in runs.values():
            check_named(run.config)
    except TinsmithError as error:
        raise TinsmithError(f"{name}: {error}") from error
    CookbookPlan(runs).check(name)
    InspectPlan(runs).check()
    return Plan(runs, origins(values, os.environ, name))


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs, and where settings come from; most methods take a rule's wildcards."""

    runs: dict[str, RunConfig]
    origins: dict[str, str]

    # The names that the wildcards may take.

    def run_pattern(self) -> str:
        return either(self.runs)

    def stage_pattern(self) -> str:
        """Stages whose loop is Tinsmith's own; the others are of the plan of the cookbook."""
        stages = self._any_run().config.stages
        return either(s.name for s in stages if not isinstance(s, Cookbook))

    def evaluated_pattern(self) -> str:
        return either([BASE, *self._any_run().stage_names()])

    def model_pattern(self) -> str:
        """Models that are made; one that the config names by its path is never written to."""
        made = [r for r in self.runs.values() if not isinstance(r.config.model, PathModel)]
        return either({run.model_key for run in made})

    def data_pattern(self) -> str:
        return either({run.data_key for run in self.runs.values()})

    # Settings, as the JSON of a command line.

    def setup_settings(self, wildcards: Any) -> str:
        backends = [run.config.backend for run in self.runs.values()]
        kinds = sorted({backend.kind for backend in backends})
        hosted = {r.model_name for r in self.runs.values() if r.config.backend.kind == "hosted"}
        devices = sorted({backend.device for backend in backends if backend.kind == "local"})
        config = self._any_run().config.model_dump(mode="json")
        flat = {**config, **{f"backend.{key}": value for key, value in config["backend"].items()}}
        # Those that Snakemake prints with each job are no reason to run this one again.
        told = {
            key: f"{flat[key]} ({origin})"
            for key, origin in self.origins.items()
            if key not in ("backend.threads", "backend.gpus", "backend.keep_s")
        }
        return settings_json(
            SetupSettings(
                kinds=tuple(kinds),
                devices=tuple(devices),
                hosted_models=tuple(sorted(hosted)),
                trackers=self._any_run().config.trackers,
                settings=told,
            )
        )

    def model_settings(self, wildcards: Any) -> str:
        run = next(r for r in self.runs.values() if r.model_key == wildcards.model)
        return settings_json(run.model_settings())

    def data_settings(self, wildcards: Any) -> str:
        return settings_json(self._run_of_data(wildcards).data_settings())

    def train_settings(self, wildcards: Any) -> str:
        return settings_json(self._run(wildcards).train_settings(wildcards.stage))

    def monitors(self, wildcards: Any) -> str:
        """What a training stage is watched for: a resource to Snakemake, of which a change re-plans
        nothing."""
        return settings_json(MonitorSettings(monitors=self._run(wildcards).config.monitors))

    def checkpoints(self, wildcards: Any) -> str:
        """Which checkpoints a training stage keeps; a resource too."""
        return settings_json(self._run(wildcards).config.checkpoints)

    def trackers(self, wildcards: Any) -> str:
        """Where a training stage's metrics go: a resource too."""
        return settings_json(TrackerSettings(trackers=self._run(wildcards).config.trackers))

    def evaluate_settings(self, wildcards: Any) -> str:
        return settings_json(self._run(wildcards).evaluate_settings(wildcards.stage))

    def export_settings(self, wildcards: Any) -> str:
        return settings_json(self._run(wildcards).export_settings())

    def report_settings(self, wildcards: Any) -> str:
        return settings_json(self._report_settings())

    @property
    def container(self) -> ContainerPlan:
        """What the rules run in, and which of its files lie where the user said."""
        places = [Path(self.results())]
        for run in self.runs.values():
            places += [Path(run.config.backend.store), Path(run.model_dir)]
            if isinstance(run.config.data, FileData):
                places.append(Path(run.config.data.path))
            places += source_files(run.config.task, run.config.paradigm)
        return ContainerPlan(self._any_run().config.container, tuple(places))

    @property
    def cookbook(self) -> CookbookPlan:
        """What the stages that are recipes of the cookbook depend on."""
        return CookbookPlan(self.runs)

    @property
    def inspect(self) -> InspectPlan:
        """The evaluations by Inspect AI."""
        return InspectPlan(self.runs)

    # Files.

    def results(self) -> str:
        """The folder of all runs' results."""
        return self._any_run().config.results

    def data_source(self, wildcards: Any) -> list[str]:
        data = self._run_of_data(wildcards).config.data
        return [data.path] if isinstance(data, FileData) else []

    def model(self, wildcards: Any) -> str:
        return self._run(wildcards).model_dir

    def train_file(self, wildcards: Any) -> str:
        return f"data/{self._run(wildcards).data_key}/train.jsonl"

    def heldout_file(self, wildcards: Any) -> str:
        return f"data/{self._run(wildcards).data_key}/heldout.jsonl"

    def user_code(self, wildcards: Any) -> list[str]:
        """The files that define the run's task and paradigm, where the user wrote them."""
        config = self._run(wildcards).config
        return [str(file) for file in source_files(config.task, config.paradigm)]

    def work_dir(self, wildcards: Any) -> str:
        return self._run(wildcards).work_dir(wildcards.stage)

    def previous_checkpoint(self, wildcards: Any) -> list[str]:
        """What a stage starts from: nothing but the base model for the first, and what it says
        itself for a recipe that was told so."""
        stage = self._run(wildcards).stage(wildcards.stage)
        if isinstance(stage, Cookbook) and stage.start == "recipe":
            return []
        before = self._run(wildcards).before(wildcards.stage)
        return [] if before == BASE else [self._result(wildcards, before, "checkpoint.json")]

    def evaluated_checkpoint(self, wildcards: Any) -> list[str]:
        if wildcards.stage == BASE:
            return []
        return [self._result(wildcards, wildcards.stage, "checkpoint.json")]

    def previous_samples(self, wildcards: Any) -> list[str]:
        """The samples that a stage's are paired with: those of the stage before."""
        if wildcards.stage == BASE:
            return []
        before = self._run(wildcards).before(wildcards.stage)
        return [self._result(wildcards, before, "evaluation/samples.jsonl")]

    def base_samples(self, wildcards: Any) -> list[str]:
        if wildcards.stage == BASE:
            return []
        return [self._result(wildcards, BASE, "evaluation/samples.jsonl")]

    def last_stage(self, wildcards: Any) -> str:
        return f"{self.results()}/{wildcards.run}/{self._run(wildcards).stage_names()[-1]}"

    def last_checkpoint(self, wildcards: Any) -> str:
        return f"{self.last_stage(wildcards)}/checkpoint.json"

    def last_weights(self, wildcards: Any) -> str:
        return f"{self.last_stage(wildcards)}/weights"

    def run_records(self, wildcards: Any) -> list[str]:
        """What the jobs of a run said of themselves, and how good its stages are."""
        folder, names = f"{self.results()}/{wildcards.run}", self._run(wildcards).stage_names()
        records = [f"{folder}/{name}/run_metadata.json" for name in names]
        evaluations = [f"{folder}/{name}/evaluation" for name in (BASE, *names)]
        for name in ("evaluation.json", "run_metadata.json"):
            records += [f"{of_stage}/{name}" for of_stage in evaluations]
        return records

    def data_record(self, wildcards: Any) -> str:
        return f"data/{self._run(wildcards).data_key}/run_metadata.json"

    def reported_files(self, wildcards: Any) -> list[str]:
        """All that the report shows; every one is a file that some rule declares."""
        return [str(path) for path in reported_files(self._report_settings()).values()]

    def exports(self) -> list[str]:
        return [f"{self.results()}/{name}/export/check.json" for name in self.runs]

    # Resources.

    def request(self, rule: str) -> Request:
        """What the jobs of a rule ask for."""
        return Request(rule, self._served_configs)

    def url(self, wildcards: Any) -> str:
        """The service that a job is sent to; empty where it starts its own or uses the hosted."""
        return self._run(wildcards).config.backend.url or ""

    def urls(self, wildcards: Any) -> str:
        """Of all services that jobs are sent to, with spaces between."""
        return " ".join(sorted({run.config.backend.url or "" for run in self.runs.values()}))

    def announced(self) -> dict[str, str]:
        """By which jobs know the workflow that ends the servers that they leave to each other."""
        return announce(max(run.config.backend.keep_s for run in self.runs.values()))

    def _served_configs(self, wildcards: Any) -> list[Config]:
        """Those of the runs that a job is for: one run, all with its model or data, or all."""
        chosen = list(self.runs.values())
        for key, of in (("run", "name"), ("model", "model_key"), ("data", "data_key")):
            if hasattr(wildcards, key):
                chosen = [r for r in chosen if getattr(r, of) == getattr(wildcards, key)]
        return [run.config for run in chosen]

    def _report_settings(self) -> ReportSettings:
        runs = self.runs.values()
        made = {r.model_key for r in runs if not isinstance(r.config.model, PathModel)}
        return ReportSettings(
            config=self._any_run().config,
            runs={run.name: {"seed": run.seed, **run.swept} for run in runs},
            models=tuple(sorted(made)),
            data=tuple(sorted({run.data_key for run in runs})),
        )

    def _result(self, wildcards: Any, stage: str, file: str) -> str:
        return f"{self.results()}/{wildcards.run}/{stage}/{file}"

    def _run(self, wildcards: Any) -> RunConfig:
        return self.runs[wildcards.run]

    def _run_of_data(self, wildcards: Any) -> RunConfig:
        return next(r for r in self.runs.values() if r.data_key == wildcards.data)

    def _any_run(self) -> RunConfig:
        return next(iter(self.runs.values()))
