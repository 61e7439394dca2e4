"""What one job of a rule depends on: the part of the config that goes on its command line.

A job's settings hold nothing else, so that changing a key re-plans the jobs that depend on it and
no other. `backend.threads`, `gpus`, `url` and `keep_s`, `monitors`, `checkpoints` and `trackers`
say how and where a job runs and not what it computes; they travel as Snakemake's threads and
resources, as flags of their own, or with what the workflow tells its jobs of itself.
"""

from typing import Any

from pydantic import Field

from tinsmith.config.cookbook import Cookbook
from tinsmith.config.inspection import InspectTask
from tinsmith.config.monitors import DEFAULT_MONITORS, Monitor
from tinsmith.config.paradigms import Paradigm
from tinsmith.config.root import Config
from tinsmith.config.sections import (
    Backend,
    Data,
    Evaluation,
    Lora,
    Model,
    Operation,
    Section,
)
from tinsmith.config.stages import OwnStage
from tinsmith.config.tasks import Task
from tinsmith.config.trackers import Tracker


class SetupSettings(Section):
    """For scripts.check_setup; `settings` says what they are and where they come from."""

    kinds: tuple[str, ...]
    devices: tuple[str, ...]
    hosted_models: tuple[str, ...] = ()
    trackers: tuple[Tracker, ...] = ()
    settings: dict[str, str] = Field(default_factory=dict)


class ModelSettings(Section):
    """For scripts.prepare_model; the tiny model is pretrained on these digits and operations."""

    model: Model
    digits: int | None = None
    operations: tuple[Operation, ...] = ()


class DataSettings(Section):
    """For scripts.prepare_data."""

    data: Data


class TrainSettings(Section):
    """For scripts.train."""

    run: str
    seed: int
    model_name: str
    stage: OwnStage
    task: Task
    paradigm: Paradigm
    lora: Lora
    backend: Backend


class CookbookSettings(Section):
    """For scripts.train_cookbook."""

    run: str
    seed: int
    model_name: str
    stage: Cookbook
    lora: Lora
    backend: Backend


class MonitorSettings(Section):
    """For scripts.train, beside its settings: what is watched changes nothing that is trained."""

    monitors: tuple[Monitor, ...] = DEFAULT_MONITORS


class TrackerSettings(Section):
    """For scripts.train, beside its settings, for the same reason."""

    trackers: tuple[Tracker, ...] = ()


class EvaluateSettings(Section):
    """For scripts.evaluate; `stage` is "base" where no adapter is loaded."""

    run: str
    seed: int
    model_name: str
    stage: str
    task: Task
    paradigm: Paradigm
    evaluation: Evaluation
    backend: Backend


class InspectSettings(Section):
    """For scripts.inspect_stage; `stage` is "base" where no adapter is loaded."""

    run: str
    seed: int
    model_name: str
    stage: str
    task: InspectTask
    backend: Backend


class ExportSettings(Section):
    """For scripts.export; `stage` is the last one, whose adapter is exported."""

    run: str
    seed: int
    model_name: str
    stage: str
    task: Task
    backend: Backend


# Sections of the config that the report neither reads nor shows: it is not written again for them.
UNREPORTED = {"resources", "trackers", "checkpoints"}


class ReportSettings(Section):
    """For scripts.report: all that ran, and the values that tell the runs apart."""

    config: Config
    runs: dict[str, dict[str, Any]]
    models: tuple[str, ...]
    data: tuple[str, ...]
