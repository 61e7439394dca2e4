"""The plots of benchmarks/RESULTS.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Record, tokens_per_s

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tinsmith",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
OURS, PEERS, RATE = "#2a6fbb", "#b8bec7", "#c0562f"


def draw(found: Mapping[str, Record], preset: str, folder: Path) -> None:
    """Write ratios-<preset>.svg and growth-<preset>.svg, as far as they were measured."""
    compared = [
        (f"{name}: {case['name']}", case["sides"])
        for name, record in found.items()
        for case in record["cases"]
        if name != "growth"
    ]
    with matplotlib.rc_context(STYLE):
        if compared:
            _save(_ratios(compared), folder / f"ratios-{preset}.svg")
        if "growth" in found:
            _save(_growth(found["growth"]), folder / f"growth-{preset}.svg")


def _ratios(compared: list[tuple[str, list[Record]]]) -> Figure:
    """A group of bars for each case: tokens a second, the last side being 1."""
    figure = Figure(figsize=(9, 0.4 + sum(0.3 + 0.22 * len(sides) for _, sides in compared)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    place, ticks, names = 0.0, [], []
    for title, sides in compared:
        axes.text(0, place, title, fontweight="bold", va="center")
        peer = tokens_per_s(sides[-1])
        for side in sides:
            place += 0.75
            ratio = tokens_per_s(side) / peer
            colour = OURS if side["name"].startswith("tinsmith") else PEERS
            axes.barh(place, ratio, height=0.62, color=colour)
            axes.text(ratio, place, f" {ratio:.2f}", va="center")
            ticks.append(place)
            names.append(side["name"])
        place += 1.0
    axes.axvline(1, color="black", linewidth=0.7, linestyle=(0, (3, 3)))
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_xlabel("tokens a second, the last of each group being 1")
    return figure


def _growth(record: Record) -> Figure:
    """A panel a line: tokens a second, and the share of the products' rate."""
    cases = record["cases"]
    num_rows = -(-len(cases) // 2)
    figure = Figure(figsize=(9, 2.0 * num_rows), layout="constrained")
    panels = list(figure.subplots(num_rows, 2, squeeze=False).flat)
    for axes, case in zip(panels, cases, strict=False):
        _draw_line(axes, case, record["product_flops_per_s"])
    figure.supylabel("tokens a second; in red the share of the products' rate", fontsize=9)
    for axes in panels[len(cases) :]:
        axes.set_visible(False)
    return figure


def _draw_line(axes: Axes, case: Record, rate: float) -> None:
    sides = case["sides"]
    names = [side["name"] for side in sides]
    axes.plot(names, [tokens_per_s(side) for side in sides], "o-", color=OURS)
    axes.set_ylim(bottom=0)
    axes.set_title(case["name"])
    for place, side in enumerate(sides):
        axes.annotate(
            f"{side['flops'] / side['median_s'] / rate:.0%}",
            (place, tokens_per_s(side)),
            (0, -14),
            textcoords="offset points",
            ha="center",
            color=RATE,
        )


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
