"""What a stage sampled and how each token was weighted, for a person to read: transcript.html shows
some steps, training_step_<k>.html one."""

import math
from collections.abc import Iterable, Iterator
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from tinsmith.files import write_text
from tinsmith.step_files import Step

Row = dict[str, Any]

MAX_STEPS = 12
MAX_SAMPLES = 24
MAX_SAMPLES_OF_STEP = 512

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2330; background: #fff; }}
h1 {{ font-size: 1.5rem; }} h3 {{ margin: 1.2rem 0 0; }}
summary {{ cursor: pointer; font-weight: 600; margin: .6rem 0; }}
h3 summary, td summary {{ margin: 0; white-space: pre-wrap; }}
td summary {{ font: 13px/1.5 ui-monospace, monospace; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e3e7ee;
  vertical-align: top; }}
th.speaker {{ width: 6rem; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
pre {{ margin: 0; white-space: pre-wrap; font: 13px/1.5 ui-monospace, monospace; }}
span {{ border-radius: 2px; }} .note {{ color: #5b6675; }}
</style></head><body><h1>{title}</h1>
<p class="note">{note}</p>
{steps}
</body></html>
"""
SHADES = (
    "Each token is shaded by the weight that training gave it: green was made more likely, red less"
    " likely, unshaded was left out."
)
NOTE = (
    SHADES + " Shown are {shown} of {num_steps} steps and at most {max_samples} samples of each;"
    " steps/ holds a page of every step."
)
STEP_NOTE = (
    SHADES + " Shown are at most {max_samples} samples; training_step_{step}.json holds all."
)


def write_transcript(path: Path, title: str, steps: Iterable[Step], num_steps: int) -> None:
    """Write the page: steps at even distances, the first and the last among them."""
    shown = shown_steps(num_steps)
    sections = [
        _section(step, MAX_SAMPLES, is_open=step["step"] == 0)
        for step in steps
        if step["step"] in shown
    ]
    note = NOTE.format(shown=len(sections), num_steps=num_steps, max_samples=MAX_SAMPLES)
    write_text(path, PAGE.format(title=escape(title), note=note, steps="\n".join(sections)))


def write_step_pages(folder: Path, title: str, steps: Iterable[Step]) -> None:
    """Write training_step_<k>.html for each step."""
    for step in steps:
        name = f"training_step_{step['step']}"
        note = STEP_NOTE.format(max_samples=MAX_SAMPLES_OF_STEP, step=step["step"])
        section = _section(step, MAX_SAMPLES_OF_STEP, is_open=True)
        write_text(
            folder / f"{name}.html", PAGE.format(title=escape(title), note=note, steps=section)
        )


def shown_steps(num_steps: int) -> set[int]:
    """At most MAX_STEPS steps, spread evenly from the first to the last."""
    if num_steps <= MAX_STEPS:
        return set(range(num_steps))
    return {round(i * (num_steps - 1) / (MAX_STEPS - 1)) for i in range(MAX_STEPS)}


def _section(step: Step, max_samples: int, *, is_open: bool) -> str:
    metrics = " · ".join(
        f"{name} {step['metrics'][name]:.3g}"
        for name in ("reward_mean", "loss", "kl_nats", "validation_accuracy")
        if name in step["metrics"]
    )
    rollouts = _shown_rollouts(step["samples"], max_samples)
    samples = [turn for turns in rollouts for turn in turns]
    largest = max((abs(a) for sample in samples for a in sample["advantages"]), default=0.0)
    if len(samples) == len(rollouts):
        rows = "\n".join(_row(sample, largest) for sample in samples)
        shown = (
            "<table><tr><th>prompt</th><th>completion</th><th>answer</th>"
            f"<th class='number'>reward</th></tr>\n{rows}</table>"
        )
    else:
        shown = "\n".join(_conversation(turns, largest) for turns in rollouts)
    return (
        f"<details{' open' if is_open else ''}><summary>Step {step['step']}"
        f" <span class='note'>{escape(metrics)}</span></summary>\n{shown}</details>"
    )


def _shown_rollouts(samples: list[Row], max_samples: int) -> list[list[Row]]:
    """The turns of each rollout in the order in which they were taken; whole rollouts, as many as
    `max_samples` turns allow, and one at least."""
    rollouts: dict[tuple[int, int], list[Row]] = {}
    for sample in samples:
        rollouts.setdefault((sample["group"], sample["rollout"]), []).append(sample)
    ordered = [sorted(turns, key=lambda turn: turn["place"]) for turns in rollouts.values()]
    num_turns = accumulate(map(len, ordered))
    return [
        turns
        for i, (turns, n) in enumerate(zip(ordered, num_turns, strict=True))
        if i == 0 or n <= max_samples
    ]


def _conversation(turns: list[Row], largest: float) -> str:
    """One rollout of several turns, with what the judge said of each speaker."""
    first = turns[0]
    verdicts = {turn["speaker"]: turn["verdict"] for turn in turns if turn["verdict"] is not None}
    said = ", ".join(f"{speaker} {verdict:+.3g}" for speaker, verdict in verdicts.items())
    winner = next((speaker for speaker, verdict in verdicts.items() if verdict > 0), None)
    outcome = f"{winner} wins" if winner else "a draw"
    judged = f" · {escape(outcome)} ({escape(said)})" if verdicts else ""
    rows = "\n".join(
        f"<tr><td>{escape(turn['speaker'])}</td>"
        f"<td><pre>{''.join(_tokens(turn, largest))}</pre></td>"
        f"<td class='number'>{_reward(turn)}</td></tr>"
        for turn in turns
    )
    return (
        f"<h3>{_prompt(first)}</h3><p class='note'>answer"
        f" {escape(first['answer'])}{judged}</p>\n<table><tr><th class='speaker'>speaker</th>"
        f"<th>speech</th><th class='number'>reward</th></tr>\n{rows}</table>"
    )


def _row(sample: Row, largest: float) -> str:
    return (
        f"<tr><td>{_prompt(sample)}</td>"
        f"<td><pre>{''.join(_tokens(sample, largest))}</pre></td>"
        f"<td><pre>{escape(sample['answer'])}</pre></td>"
        f"<td class='number'>{_reward(sample)}</td></tr>"
    )


def _prompt(sample: Row) -> str:
    """The question, which opens to the whole prompt: system prompt, template, choices."""
    question, prompt = escape(sample["question"]), escape(sample["prompt"])
    return f"<details><summary>{question}</summary><pre>{prompt}</pre></details>"


def _reward(sample: Row) -> str:
    return "" if sample["reward"] is None else f"{sample['reward']:.3g}"


def _tokens(sample: Row, largest: float) -> Iterator[str]:
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
