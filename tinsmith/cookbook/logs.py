"""What a recipe leaves in its log folder: checkpoints.jsonl and metrics.jsonl."""

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.errors import TinsmithError

CHECKPOINTS, METRICS = "checkpoints.jsonl", "metrics.jsonl"
FINAL = "final"


@dataclass(frozen=True, slots=True)
class Saved:
    """The last checkpoint of a recipe; `sampler` is None unless it is the final one, which stays
    where the service deletes others in time."""

    state: str
    sampler: str | None

    @property
    def model_id(self) -> str:
        """The training run that it is of: tinker://<run>/weights/<name>."""
        return self.state.removeprefix("tinker://").partition("/")[0]


def find_log(folder: Path, others: Collection[Path], recipe: str) -> Path:
    """The one folder at or below `folder` in which the recipe saved; `others` were there before."""
    found = sorted(path.parent for path in folder.rglob(CHECKPOINTS))
    own = [path for path in found if path not in others]
    if len(own) != 1:
        where = ", ".join(str(path) for path in own) or "none"
        raise TinsmithError(
            f"recipe {recipe} must save in one log folder of its own, whose {CHECKPOINTS} names the"
            f" stage's checkpoint, got {where} in {folder}"
        )
    return own[0]


def last_checkpoint(log: Path) -> Saved:
    """The last record that has a state."""
    with_state = [row for row in _rows(log / CHECKPOINTS) if row.get("state_path")]
    if not with_state:
        raise TinsmithError(f"{log / CHECKPOINTS} must name a state to go on from, but has none")
    last = with_state[-1]
    sampler = last.get("sampler_path") if last.get("name") == FINAL else None
    return Saved(last["state_path"], sampler)


def read_metrics(log: Path) -> list[dict[str, float]]:
    """One row a step, its numbers by name. Where a step was logged twice, as after a kill, the
    later counts; what is logged without a step belongs to the step before."""
    steps: dict[int, dict[str, float]] = {}
    step = 0
    for row in _rows(log / METRICS):
        step = int(row.get("step", step))
        numbers = {name: value for name, value in row.items() if _is_number(value)}
        steps[step] = {**steps.get(step, {}), **numbers, "step": step}
    return [steps[step] for step in sorted(steps)]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise TinsmithError(f"{file}: line {number} must be JSON: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
