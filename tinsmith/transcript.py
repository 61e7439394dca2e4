"""transcript.html: what a stage sampled and how each token was weighted, for a person to read."""

import math
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from tinsmith.files import write_text
from tinsmith.step_files import Step

MAX_STEPS = 12
MAX_SAMPLES = 24

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2330; background: #fff; }}
h1 {{ font-size: 1.5rem; }} summary {{ cursor: pointer; font-weight: 600; margin: .6rem 0; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e3e7ee;
  vertical-align: top; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
pre {{ margin: 0; white-space: pre-wrap; font: 13px/1.5 ui-monospace, monospace; }}
span {{ border-radius: 2px; }} .note {{ color: #5b6675; }}
</style></head><body><h1>{title}</h1>
<p class="note">{note}</p>
{steps}
</body></html>
"""
NOTE = (
    "Each token is shaded by the weight that training gave it: green was made more likely, red less"
    " likely, unshaded was left out. Shown are {shown} of {num_steps} steps and at most"
    " {max_samples} samples of each; steps/ holds all of them."
)


def write_transcript(path: Path, title: str, steps: Iterable[Step], num_steps: int) -> None:
    """Write the page: steps at even distances, the first and the last among them."""
    shown = shown_steps(num_steps)
    sections = [_section(step) for step in steps if step["step"] in shown]
    note = NOTE.format(shown=len(sections), num_steps=num_steps, max_samples=MAX_SAMPLES)
    write_text(path, PAGE.format(title=escape(title), note=note, steps="\n".join(sections)))


def shown_steps(num_steps: int) -> set[int]:
    """At most MAX_STEPS steps, spread evenly from the first to the last."""
    if num_steps <= MAX_STEPS:
        return set(range(num_steps))
    return {round(i * (num_steps - 1) / (MAX_STEPS - 1)) for i in range(MAX_STEPS)}


def _section(step: Step) -> str:
    metrics = " · ".join(
        f"{name} {step['metrics'][name]:.3g}"
        for name in ("reward_mean", "loss", "kl_nats", "heldout_accuracy")
        if name in step["metrics"]
    )
    samples = step["samples"][:MAX_SAMPLES]
    largest = max((abs(a) for sample in samples for a in sample["advantages"]), default=0.0)
    rows = "\n".join(_row(sample, largest) for sample in samples)
    return (
        f"<details{' open' if step['step'] == 0 else ''}><summary>Step {step['step']}"
        f" <span class='note'>{escape(metrics)}</span></summary>\n<table><tr><th>prompt</th>"
        f"<th>completion</th><th>answer</th><th>reward</th></tr>\n{rows}</table></details>"
    )


def _row(sample: dict[str, Any], largest: float) -> str:
    reward = "" if sample["reward"] is None else f"{sample['reward']:.3g}"
    return (
        f"<tr><td><pre>{escape(sample['question'])}</pre></td>"
        f"<td><pre>{''.join(_tokens(sample, largest))}</pre></td>"
        f"<td><pre>{escape(sample['answer'])}</pre></td><td class='number'>{reward}</td></tr>"
    )


def _tokens(sample: dict[str, Any], largest: float) -> Iterator[str]:
    logprobs = sample["logprobs"] or sample["trainer_logprobs"]
    rows = zip(sample["pieces"], sample["advantages"], logprobs, strict=True)
    for piece, advantage, logprob in rows:
        hint = f"weight {advantage:.3g}, probability {math.exp(logprob):.3g}"
        style = f"background: {_shade(advantage, largest)}"
        yield f'<span style="{style}" title="{hint}">{escape(piece)}</span>'


def _shade(advantage: float, largest: float) -> str:
    if not advantage:
        return "none"
    hue = 140 if advantage > 0 else 5
    return f"hsl({hue} 70% {95 - 25 * abs(advantage) / largest:.0f}%)"
