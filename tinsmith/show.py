"""`tinsmith show`: what a training stage sampled, in the terminal."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from tinsmith.errors import TinsmithError
from tinsmith.step_files import Step

Row = dict[str, Any]
SORTS: dict[str, Callable[[Row], Any]] = {
    "reward": lambda row: inf if row["reward"] is None else -row["reward"],
    "advantage": lambda row: -max(row["advantages"], key=abs, default=0.0),
    "length": lambda row: -len(row["tokens"]),
    "group": lambda row: (row["group"], row["rollout"], row["place"]),
}
SHOWN_METRICS = ("reward_mean", "share_right", "loss", "kl_nats", "entropy_nats", "grad_norm")


def show(folder: Path, step: int | None, sort: str, limit: int | None) -> None:
    """Page through the samples of a step of the stage in `folder`; the last step if None."""
    found = read_step(folder, step)
    rows = sorted(found["samples"], key=SORTS[sort])[:limit]
    console = Console()
    page = Group(*_page(found, rows, len(found["samples"])))
    if sys.stdout.isatty():
        os.environ.setdefault("LESS", "-RFX")  # colours; no pager for what fits the screen
        with console.pager(styles=True):
            console.print(page)
    else:
        console.print(page)


def read_step(folder: Path, step: int | None) -> Step:
    """A step's file, or which steps there are."""
    files = {int(f.stem.rpartition("_")[2]): f for f in folder.glob("steps/training_step_*.json")}
    if not files:
        raise TinsmithError(
            f"{folder} must be the folder of a training stage, results/<run>/<stage>, but it holds"
            " no steps/training_step_<k>.json"
        )
    last = max(files)
    if step is not None and step not in files:
        raise TinsmithError(f"--step must be one of the steps 0 to {last} of {folder}, got {step}")
    return json.loads(files[last if step is None else step].read_text(encoding="utf-8"))


def _page(step: Step, rows: list[Row], num_samples: int) -> Iterator[RenderableType]:
    metrics = step["metrics"]
    said = "  ".join(f"{name} {metrics[name]:.3g}" for name in SHOWN_METRICS if name in metrics)
    yield Text(f"Step {step['step']}: {len(rows)} of {num_samples} samples", style="bold")
    yield Text(said)
    yield Text("green was made more likely, red less likely, grey was left out", style="dim")
    largest = max((abs(a) for row in rows for a in row["advantages"]), default=0.0)
    for row in rows:
        yield Rule(f"group {row['group']}  rollout {row['rollout']}  {row['speaker']}")
        yield from _sample(row, largest)


def _sample(row: Row, largest: float) -> Iterator[RenderableType]:
    yield Text(row["prompt"], style="dim")
    completion = Text()
    for piece, advantage in zip(row["pieces"], row["advantages"], strict=True):
        completion.append(piece, style=_style(advantage, largest))
    yield completion
    if row["reward"] is None:
        what = "reference answer" if row["is_trained"] else "not rewarded; the answer is"
        yield Text(f"{what} {row['answer']!r}")
        return
    terms = ", ".join(f"{name} {value:.3g}" for name, value in row["reward_terms"].items())
    yield Text.assemble(
        (f"reward {row['reward']:.3g}", "bold"),
        f" ({terms})  centred {row['reward_centred']:.3g}  answer {row['answer']!r}",
        "" if row["is_finished"] else ("  not finished", "yellow"),
    )


def _style(advantage: float, largest: float) -> str:
    if not advantage:
        return "grey50"
    light = round(255 * (0.35 + 0.65 * abs(advantage) / largest))
    return f"rgb(0,{light},0)" if advantage > 0 else f"rgb({light},0,0)"
