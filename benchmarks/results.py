"""The tables and plots of benchmarks/RESULTS.md, from what the commands wrote.

`python -m benchmarks.results`. It reads benchmarks/measured/<preset>/<command>.json, which `make
bench` writes, replaces what stands between the marks in RESULTS.md, and draws the plots anew.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.entry import run
from tinsmith.errors import TinsmithError
from tinsmith.files import write_text

FOLDER = Path(__file__).parent
MEASURED = FOLDER / "measured"
PAGE = FOLDER / "RESULTS.md"
# The order of `make bench`, and of the tables.
COMMANDS = (
    "sampling",
    "sampling_vllm",
    "training",
    "grpo",
    "skyrl",
    "growth",
    "start",
    "round_trip",
    "rules",
    "products",
)
BEGIN, END = "<!-- tables: made by `python -m benchmarks.results` -->", "<!-- end of tables -->"

Record = dict[str, Any]


def main() -> None:
    from benchmarks.plots import draw

    for folder in folders():
        draw(records(folder), folder.name, FOLDER)
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, page_with(tables(), page))


def folders(measured: Path = MEASURED) -> list[Path]:
    """A folder for each model that was measured."""
    return sorted(path for path in measured.glob("*") if path.is_dir())


def records(folder: Path) -> dict[str, Record]:
    """What each command wrote that was run with this model; a trial's figures are refused."""
    found: dict[str, Record] = {}
    for name in COMMANDS:
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            settings = found[name]["settings"]
            left_out = settings.get("left_out")
            if settings["every"] != 1 or settings["repeats"] < 3 or left_out:
                missing = f" without {', '.join(left_out)}" if left_out else ""
                raise TinsmithError(
                    f"{path} must hold at least 3 runs of all sequences of all cases, got a trial "
                    f"with --repeats {settings['repeats']} --every {settings['every']}{missing}; "
                    "measure again"
                )
    return found


def tables(measured: Path = MEASURED) -> str:
    """Everything that stands between the marks."""
    parts = [_of_model(folder) for folder in folders(measured)]
    return "".join(parts) or "\nNothing was measured yet: `make bench` does.\n\n"


def page_with(text: str, page: str) -> str:
    """The page with `text` between the marks."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise TinsmithError(f"{PAGE} must hold the lines {BEGIN!r} and {END!r} once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}"


def _of_model(folder: Path) -> str:
    found = records(folder)
    machines = {
        json.dumps([one["hardware"], one["settings"]["device"], one["settings"]["threads"]])
        for one in found.values()
    }
    if len(machines) != 1:
        raise TinsmithError(
            f"the files of {folder} must be of one machine, one device, one number of threads and "
            f"one set of versions, got {len(machines)} different; measure again with `make bench`"
        )
    hardware, device, threads = json.loads(machines.pop())
    versions = ", ".join(f"{key} {value}" for key, value in hardware.items())
    plots = [f"{name}-{folder.name}.svg" for name in ("ratios", "growth")]
    parts = [
        f"\n## {folder.name}, on {device}\n",
        f"{versions}; {threads} threads a side.\n",
        _comparisons([one for one in found.values() if one["cases"]]),
        _figures([one for one in found.values() if one["figures"]]),
        *(f"![{name}]({name})\n" for name in plots if (FOLDER / name).is_file()),
    ]
    return "\n".join(parts) + "\n"


def _comparisons(found: Sequence[Record]) -> str:
    lines = [
        "| command | case | side | seconds | tokens/s | ratio | share of the products' rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        command = _command(one)
        for case in one["cases"]:
            name = case["name"]
            for side in case["sides"]:
                lines.append(_row(one, command, name, side, case["sides"][-1]))
                command = name = ""
    return "\n".join(lines) + "\n"


def _command(one: Record) -> str:
    """What was run, and of which commit."""
    commit, dash, dirty = (one["commit"] or "").partition("-")
    return f"`{one['command']}`" + (f" ({commit[:7]}{dash}{dirty})" if commit else "")


def _row(one: Record, command: str, name: str, side: Record, peer: Record) -> str:
    speed = tokens_per_s(side)
    rate = one["product_flops_per_s"]
    share = f"{side['flops'] / side['median_s'] / rate:.0%}" if side["flops"] and rate else ""
    ratio = speed / tokens_per_s(peer)
    return (
        f"| {command} | {name} | {side['name']} | {side['median_s']:.2f} | {speed:.0f} "
        f"| {ratio:.2f} | {share} |"
    )


def tokens_per_s(side: Record) -> float:
    """Useful tokens a second of the median run."""
    return side["num_tokens"] / side["median_s"]


def _figures(found: Sequence[Record]) -> str:
    lines = ["| command | what | value |", "|---|---|---|"]
    for one in found:
        command = _command(one)
        for figure in one["figures"]:
            lines.append(
                f"| {command} | {figure['name']} | {figure['value']:.4g} {figure['unit']} |"
            )
            command = ""
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
