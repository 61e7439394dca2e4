"""What the folder of a run tells of its trained stages: results/<run>."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.checkpoints import Checkpoint
from tinsmith.errors import TinsmithError, nearest
from tinsmith.runs import BASE

RECORD = "run_metadata.json"
RECIPE = "train_cookbook"  # the rule of stages that may follow none


@dataclass(frozen=True, slots=True)
class TrainedStage:
    """A stage that is done: its checkpoint, the job that made it and how good it is.

    `record` is the job's run_metadata.json, whose paths are relative to the folder that Snakemake
    ran in, and `evaluated` that of its evaluation, with `evaluation` what it found; both are None
    where the stage was not evaluated.
    """

    folder: Path
    checkpoint: Checkpoint
    record: dict[str, Any]
    evaluated: dict[str, Any] | None
    evaluation: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.checkpoint.stage

    @property
    def settings(self) -> dict[str, Any]:
        """What the stage was told: stage, task, paradigm, lora, backend. A recipe of the cookbook
        knows of no task and paradigm: those that it was evaluated with."""
        known = self.evaluated["settings"] if self.evaluated else {}
        asked = {name: known[name] for name in ("task", "paradigm") if name in known}
        return asked | self.record["settings"]

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def model_dir(self) -> Path:
        """The base model's folder."""
        return Path(self.record["inputs"]["model"]["path"])

    @property
    def previous(self) -> str:
        """The stage before this one, which its evaluation is compared with, or "base"."""
        if self.evaluated is not None:
            return Path(self.evaluated["inputs"]["previous"]["path"]).parents[1].name
        previous = self.record["inputs"].get("previous")
        return Path(previous["path"]).parent.name if previous else BASE

    @property
    def problems(self) -> dict[str, dict[str, Any]]:
        """The files of problems, as they were recorded: to train on and to evaluate with."""
        evaluated = self.evaluated["inputs"] if self.evaluated else {}
        inputs = {**evaluated, **self.record["inputs"]}
        return {name: inputs[name] for name in ("train", "heldout") if name in inputs}

    def data(self) -> dict[str, Any] | None:
        """What the problems were made of: the config's `data` section; None without problems."""
        for file in self.problems.values():
            return _read(Path(file["path"]).parent / RECORD)["settings"]["data"]
        return None


def read_run(folder: Path) -> list[TrainedStage]:
    """The stages of a run that are done, in the order of training."""
    found = {path.parent.name: _stage(path.parent) for path in folder.glob("*/checkpoint.json")}
    if not found:
        raise TinsmithError(
            f"{folder} must be the folder of a run, results/<run>, with at least one trained stage"
            " (<stage>/checkpoint.json), but has none"
        )
    stages: list[TrainedStage] = []
    name = BASE
    while following := [stage for stage in found.values() if stage.previous == name]:
        # Of two that follow one, as after a change of names, the one of the present config.
        stages.append(max(following, key=lambda stage: stage.record["started"]))
        name = stages[-1].name
    # Recipes may start from no stage; another kind that follows none is left from an older config.
    left = [one for one in found.values() if one not in stages and one.record["rule"] == RECIPE]
    return stages + sorted(left, key=lambda stage: stage.record["started"])


def up_to(stages: Sequence[TrainedStage], name: str | None) -> list[TrainedStage]:
    """The stages to the one of this name, to the last for None."""
    names = [stage.name for stage in stages]
    if name is None:
        return list(stages)
    if name not in names:
        raise TinsmithError(
            f"the run must have the stage {name!r}; it has {', '.join(names)}{nearest(name, names)}"
        )
    return list(stages[: names.index(name) + 1])


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """The evaluation of a stage, or of the base model in results/<run>/base; None without one."""
    file = folder / "evaluation" / "evaluation.json"
    return _read(file) if file.is_file() else None


def accuracy_text(evaluation: dict[str, Any]) -> str:
    """For people: 68.2 % [64.9, 71.4]."""
    mean, low, high = (100 * evaluation[f"accuracy{end}"] for end in ("", "_low", "_high"))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _stage(folder: Path) -> TrainedStage:
    checkpoint = Checkpoint.read(folder / "checkpoint.json")
    record, evaluated = _read(folder / RECORD), folder / "evaluation" / RECORD
    return TrainedStage(
        folder,
        checkpoint,
        record,
        _read(evaluated) if evaluated.is_file() else None,
        read_evaluation(folder),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TinsmithError(f"{file} must be what a job of the pipeline wrote: {error}") from error
