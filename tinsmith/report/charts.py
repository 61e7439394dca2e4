"""Charts as inline SVG, drawn by matplotlib in colours that the page's style sheet sets."""

import io
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tinsmith.report.results import Results, RunResults, Variant
from tinsmith.runs import BASE

# Stand-ins that no chart uses otherwise; the page replaces them by its variables, light or dark.
INK, FAINT, GRID, BASE_COLOUR = "#010203", "#010204", "#010205", "#010206"
COLOURS = tuple(f"#0102{index:02x}" for index in range(16, 24))
_VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid", BASE_COLOUR: "--base"} | {
    colour: f"--series-{index}" for index, colour in enumerate(COLOURS)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tinsmith",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.solid_capstyle": "round",
}
CURVES = (
    ("validation_accuracy", "Validation accuracy"),
    ("reward_mean", "Reward"),
    ("loss", "Loss"),
    ("entropy_nats", "Entropy, nats a token"),
    ("kl_nats", "KL sampler to trainer, nats"),
    ("completion_length_mean", "Completion length, tokens"),
    ("share_zero_variance", "Groups without variance"),
    ("grad_norm", "Gradient norm"),
    ("tokens_per_s", "Tokens a second"),
    # Of recipes of the tinker-cookbook, as they name them.
    ("train_mean_nll", "Loss, nats a token"),
    ("test/nll", "Held-out loss, nats a token"),
    ("dpo_loss", "DPO loss"),
    ("accuracy", "Pairs ranked right"),
    ("env/all/reward/total", "Reward"),
    ("reward/total", "Reward"),
    ("teacher_kl", "KL to the teacher, nats"),
    ("optim/entropy", "Entropy, nats a token"),
    ("optim/kl_sample_train_v2", "KL sampler to trainer, nats"),
    ("env/all/ac_tokens_per_turn", "Completion length, tokens"),
    ("learning_rate", "Learning rate"),
)
# Of a stage that logs none of these, under their own names.
MAX_CURVES = 9
SHARES = ("validation_accuracy", "share_zero_variance", "accuracy")


def colour_of(index: int) -> str:
    """The stand-in of the index-th stage or variant."""
    return COLOURS[index % len(COLOURS)]


def accuracy_chart(results: Results) -> str:
    """Held-out accuracy by stage: every seed with its interval, and the pooled mean."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for index, variant in enumerate(results.variants):
            _draw_variant(axes, results, variant, index)
        axes.set_xticks(range(len(results.evaluated)), results.evaluated)
        axes.tick_params(axis="x", labelcolor=INK, pad=8)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1.02)
        axes.set_xlim(-0.35, len(results.evaluated) - 0.65)
        if len(results.variants) > 1:
            axes.legend(loc="lower right")
        return svg(figure, "Held-out accuracy by stage")


def curves_chart(results: Results, stage: str) -> str:
    """The curves of one stage: a thin line for each seed, a thick one for their mean."""
    panels = [(key, title) for key, title in CURVES if _has(results, stage, key)]
    if not panels:
        row = results.variants[0].runs[0].metrics[stage][:1]
        names = sorted({*(row[0] if row else ())} - {"step"})
        panels = [(name, name) for name in names if _has(results, stage, name)][:MAX_CURVES]
    if not panels:
        return ""
    num_rows = -(-len(panels) // 3)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.95 * num_rows), layout="constrained")
        grid = list(figure.subplots(num_rows, 3, squeeze=False, sharex=True).flat)
        for axes, (key, title) in zip(grid, panels, strict=False):
            _draw_curve(axes, results, stage, key)
            axes.set_title(title)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("optimizer step", color=FAINT, fontsize=9)
        return svg(figure, f"Curves of stage {stage}")


def _draw_variant(axes: Axes, results: Results, variant: Variant, index: int) -> None:
    several = len(results.variants) > 1
    places = list(range(len(results.evaluated)))
    pooled = [variant.accuracy(stage) for stage in results.evaluated]
    means = [interval.mean for interval in pooled]
    line = colour_of(index) if several else FAINT
    axes.plot(places, means, color=line, linewidth=1.6, zorder=2, label=variant.label)
    for place, stage in enumerate(results.evaluated):
        colour = line if several else _stage_colour(results, stage)
        mean = means[place]
        _draw_seeds(axes, variant.runs, stage, place, colour)
        axes.plot(place, mean, "o", color=colour, markersize=9, zorder=4)
        highest = max(run.evaluations[stage]["accuracy_high"] for run in variant.runs)
        if not several:
            axes.annotate(
                f"{100 * mean:.1f} %", (place, highest), (0, 9), textcoords="offset points",
                ha="center", color=INK, fontsize=11, fontweight="bold", zorder=5,
            )  # fmt: skip


def _draw_seeds(
    axes: Axes, runs: Sequence[RunResults], stage: str, place: int, colour: str
) -> None:
    for number, run in enumerate(runs):
        evaluation = run.evaluations[stage]
        x = place + (number - (len(runs) - 1) / 2) * 0.07
        axes.vlines(
            x, evaluation["accuracy_low"], evaluation["accuracy_high"],
            color=colour, linewidth=5, alpha=0.3, zorder=1,
        )  # fmt: skip
        if len(runs) > 1:
            axes.plot(x, evaluation["accuracy"], "o", color=colour, markersize=3, zorder=5)


def _draw_curve(axes: Axes, results: Results, stage: str, key: str) -> None:
    several = len(results.variants) > 1
    for index, variant in enumerate(results.variants):
        colour = colour_of(index) if several else _stage_colour(results, stage)
        lines = [_points(run, stage, key) for run in variant.runs]
        for line in lines:
            axes.plot(*_unzip(line), color=colour, linewidth=0.9, alpha=0.4)
        shared = sorted(set.intersection(*(set(line) for line in lines)))
        means = [fmean(line[step] for line in lines) for step in shared]
        marker = "o" if key == "validation_accuracy" or len(shared) < 2 else None
        axes.plot(shared, means, color=colour, linewidth=1.8, marker=marker, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if key in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for bound in _bounds(results, key):
        axes.axhline(bound, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))


def _bounds(results: Results, key: str) -> list[float]:
    """Where the config's monitors of a metric warn or stop."""
    monitors = [monitor for monitor in results.config.monitors if monitor.metric == key]
    bounds = (bound for monitor in monitors for bound in (monitor.above, monitor.below))
    return [bound for bound in bounds if bound is not None]


def _points(run: RunResults, stage: str, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in run.metrics[stage] if row.get(key) is not None}


def _unzip(line: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(line), list(line.values())


def _has(results: Results, stage: str, key: str) -> bool:
    return all(_points(run, stage, key) for variant in results.variants for run in variant.runs)


def _stage_colour(results: Results, stage: str) -> str:
    return BASE_COLOUR if stage == BASE else colour_of(results.stages.index(stage))


def svg(figure: Figure, title: str) -> str:
    """The figure without XML header, size or font of its own, in the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"(font: [^;\"']*?px)[^;\"]*", r"\1 var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
