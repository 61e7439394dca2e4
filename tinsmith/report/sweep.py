"""A sweep at a glance: what was reached at every swept value, drawn and in numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter

from tinsmith.report.charts import STYLE, colour_of, svg
from tinsmith.report.results import Results, Variant

# Of the steps of a stage that count as its end, one in so many.
LAST_SHARE = 10
WIDE = 5  # largest to smallest value: beyond that the axis is logarithmic
# What training was for, by the first of these that every run logged.
AIMS = (
    ("train_mean_nll", "loss, nats a token"),
    ("dpo_loss", "DPO loss"),
    ("env/all/reward/total", "reward"),
    ("teacher_kl", "KL to the teacher, nats"),
    ("reward_mean", "reward"),
    ("loss", "loss"),
)


@dataclass(frozen=True, slots=True)
class Aim:
    """What the last stage trained for, over the last tenth of its steps: a value for each variant,
    the mean over its seeds."""

    title: str
    values: tuple[float, ...]


def last_aim(results: Results) -> Aim | None:
    """None where the runs have no such metric in common."""
    stage = results.stages[-1]
    for key, title in AIMS:
        found = [_end_of(variant, stage, key) for variant in results.variants]
        values = [value for value in found if value is not None]
        if len(values) == len(found):
            return Aim(title, tuple(values))
    return None


def sweep_charts(results: Results) -> list[str]:
    """For each swept key, accuracy and the aim over its values, a line for each choice of the
    others."""
    keys = list(results.variants[0].swept)
    return [_chart(results, key) for key in keys if len(_values(results, key)) > 1]


def _chart(results: Results, key: str) -> str:
    aim = last_aim(results)
    places, values = _places(_values(results, key)), _values(results, key)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        left, *rest = figure.subplots(1, 2 if aim else 1, squeeze=False).flat
        for index, (label, variants) in enumerate(_lines(results, key).items()):
            xs = [places[values.index(variant.swept[key])] for variant in variants]
            reached = [variant.accuracy(results.stages[-1]) for variant in variants]
            style: Any = {"color": colour_of(index), "linewidth": 1.6, "label": label}
            left.plot(xs, [interval.mean for interval in reached], marker="o", **style)
            lows, highs = [i.low for i in reached], [i.high for i in reached]
            left.fill_between(xs, lows, highs, color=colour_of(index), alpha=0.15, linewidth=0)
            if aim:
                ends = [aim.values[results.variants.index(variant)] for variant in variants]
                rest[0].plot(xs, ends, marker="o", **style)
        left.set_title(f"Accuracy after {results.stages[-1]}")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if aim:
            rest[0].set_title(f"At the end of {results.stages[-1]}: {aim.title}")
        for axes in (left, *rest):
            _label_values(axes, places, values, key)
        if len(_lines(results, key)) > 1:
            left.legend(loc="best")
        return svg(figure, f"What was reached over {key}")


def _lines(results: Results, key: str) -> dict[str, list[Variant]]:
    """The variants by what else was swept, each in the order of the values of `key`."""
    values = _values(results, key)
    lines: dict[str, list[Variant]] = {}
    for variant in sorted(results.variants, key=lambda v: values.index(v.swept[key])):
        others = (f"{name} = {value}" for name, value in variant.swept.items() if name != key)
        lines.setdefault(", ".join(others), []).append(variant)
    return lines


def _values(results: Results, key: str) -> list[Any]:
    """The values of a key, each once: numbers by size, others as the config lists them."""
    found = list({str(v.swept[key]): v.swept[key] for v in results.variants}.values())
    return sorted(found) if all(map(_is_number, found)) else found


def _places(values: Sequence[Any]) -> list[float]:
    """Where the values stand on the axis: numbers where they are, others side by side."""
    if all(map(_is_number, values)):
        return [float(value) for value in values]
    return [float(index) for index in range(len(values))]


def _label_values(axes: Axes, places: Sequence[float], values: Sequence[Any], key: str) -> None:
    if all(map(_is_number, values)) and min(values) > 0 and max(values) >= WIDE * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.set_xticks(list(places), [f"{v:g}" if _is_number(v) else str(v) for v in values])
    axes.set_xlabel(key)


def _end_of(variant: Variant, stage: str, key: str) -> float | None:
    ends = []
    for run in variant.runs:
        logged = [row[key] for row in run.metrics[stage] if row.get(key) is not None]
        if not logged:
            return None
        ends.append(fmean(logged[-math.ceil(len(logged) / LAST_SHARE) :]))
    return fmean(ends)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
