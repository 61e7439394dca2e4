"""Runs: one resolved config per seed and swept value, and where its artifacts lie."""

import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.config import (
    ArithmeticData,
    Config,
    Cookbook,
    CookbookSettings,
    DataSettings,
    EvaluateSettings,
    ExportSettings,
    HubModel,
    InspectSettings,
    InspectTask,
    ModelSettings,
    PathModel,
    Section,
    Stage,
    TinyModel,
    TrainSettings,
    check_section,
)
from tinsmith.config.settings import UNREPORTED
from tinsmith.config.sweeping import replaced
from tinsmith.errors import TinsmithError

BASE = "base"
NOTHING = "(?!)"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One seed and one choice of the swept values."""

    name: str
    seed: int
    swept: dict[str, Any]
    config: Config

    @property
    def model_key(self) -> str:
        model = self.config.model
        if isinstance(model, HubModel):
            return model.name.replace("/", "__")
        if isinstance(model, PathModel):
            name = model.name or Path(model.path).name
            return name.replace("=", "-").replace("/", "__")  # served as NAME=DIRECTORY
        return f"tiny-{short_hash(self.model_settings())}"

    @property
    def model_dir(self) -> str:
        model = self.config.model
        return model.path if isinstance(model, PathModel) else f"models/{self.model_key}"

    @property
    def model_name(self) -> str:
        """What the Tinker API calls the base model."""
        model = self.config.model
        named = None if isinstance(model, TinyModel) else model.name
        return named or self.model_key

    @property
    def data_key(self) -> str:
        return f"{self.config.data.kind}-{short_hash(self.config.data)}"

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.config.stages if stage.name == name)

    def stage_names(self) -> list[str]:
        return [stage.name for stage in self.config.stages]

    def before(self, name: str) -> str:
        """The stage whose checkpoint `name` starts from; "base" before the first."""
        names = [BASE, *self.stage_names()]
        return names[names.index(name) - 1]

    def model_settings(self) -> ModelSettings:
        data = self.config.data
        known = data if isinstance(data, ArithmeticData) else ArithmeticData(kind="arithmetic")
        if self.config.model.kind != "tiny":
            return ModelSettings(model=self.config.model)
        return ModelSettings(
            model=self.config.model, digits=known.digits, operations=known.operations
        )

    def data_settings(self) -> DataSettings:
        return DataSettings(data=self.config.data)

    def train_settings(self, stage: str) -> TrainSettings | CookbookSettings:
        config, of_stage = self.config, self.stage(stage)
        told = {**self._common(), "stage": of_stage, "lora": config.lora}
        if isinstance(of_stage, Cookbook):
            return CookbookSettings(**told)
        return TrainSettings(**told, task=config.task, paradigm=config.paradigm)

    def evaluate_settings(self, stage: str) -> EvaluateSettings:
        config = self.config
        return EvaluateSettings(
            **self._common(),
            stage=stage,
            task=config.task,
            paradigm=config.paradigm,
            evaluation=config.evaluation,
        )

    def inspect_task(self, name: str) -> InspectTask:
        return next(task for task in self.config.inspect if task.name == name)

    def inspect_settings(self, stage: str, evaluation: str) -> InspectSettings:
        return InspectSettings(**self._common(), stage=stage, task=self.inspect_task(evaluation))

    def export_settings(self) -> ExportSettings:
        config = self.config
        return ExportSettings(**self._common(), stage=config.stages[-1].name, task=config.task)

    def _common(self) -> dict[str, Any]:
        """What every job of the run is told."""
        return {
            "run": self.name,
            "seed": self.seed,
            "model_name": self.model_name,
            "backend": self.config.backend,
        }

    def work_dir(self, stage: str) -> str:
        """Where a running stage keeps its progress; another setting anywhere before is another."""
        names = self.stage_names()
        chain = names[: names.index(stage) + 1]
        parts = [settings_json(self.train_settings(name)) for name in chain]
        parts += [settings_json(self.model_settings()), settings_json(self.config.data)]
        return f"work/{self.name}/{stage}-{_hash8(''.join(parts))}"


def expand(config: Config, source: str = "config.yaml") -> dict[str, RunConfig]:
    """Every seed times every combination of the swept values, by the run's name; `source` is the
    config's file in what is said of it."""
    keys = list(config.sweep)
    runs: dict[str, RunConfig] = {}
    for chosen in itertools.product(*config.sweep.values()):
        swept = dict(zip(keys, chosen, strict=True))
        said = ", ".join(f"{key} = {value}" for key, value in swept.items())
        values = replaced(config, swept, source)
        resolved = check_section(Config, values, f"{source}: sweep ({said})")
        for seed in config.seeds:
            run = RunConfig(_run_name(seed, swept), seed, swept, resolved)
            if run.name in runs:
                raise TinsmithError(
                    f"{source}: sweep must give every run its own name, got {run.name!r} twice"
                )
            runs[run.name] = run
    _refuse_shared_keys(runs, source)
    return runs


def settings_json(section: Section) -> str:
    """A job's settings for its command line; how it is scheduled is not among them."""
    left_out = {"backend": {"threads", "gpus", "url", "keep_s"}, "config": UNREPORTED}
    return section.model_dump_json(exclude=left_out)


def either(names: Iterable[str]) -> str:
    """What a wildcard may be: one of the names, or nothing at all."""
    return "|".join(re.escape(name) for name in sorted(names)) or NOTHING


def short_hash(section: Section) -> str:
    """Eight hex digits that change when any value of the section does."""
    return _hash8(settings_json(section))


def _hash8(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _run_name(seed: int, swept: dict[str, Any]) -> str:
    parts = [f"seed={seed}", *(f"{key}={_in_a_name(value)}" for key, value in swept.items())]
    return "+".join(parts)  # not a comma, which cuts wildcards in two where Snakemake submits jobs


def _in_a_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value)).strip("-") or "none"


def _refuse_shared_keys(runs: dict[str, RunConfig], source: str) -> None:
    """A hub model's folder bears its name alone, so two revisions cannot stand side by side."""
    models: dict[str, ModelSettings] = {}
    for run in runs.values():
        if models.setdefault(run.model_key, run.model_settings()) != run.model_settings():
            raise TinsmithError(
                f"{source}: sweep must not give one model two revisions or paths of the same"
                f" name, got both for {run.model_key!r}; run them one after the other"
            )
