"""The DAG as it ran: jobs, joined where one's recorded output is another's recorded input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx

Row = dict[str, Any]
MAX_RUNS = 6
WIDTH, HEIGHT, GAP_X, GAP_Y = 150, 40, 40, 14


@dataclass(frozen=True, slots=True)
class Node:
    """A job, placed."""

    x: float
    y: float
    title: str
    detail: str
    colour: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """All that the template needs to draw the DAG; edges are SVG paths."""

    width: float
    height: float
    nodes: tuple[Node, ...]
    edges: tuple[str, ...]
    num_runs_left_out: int


def draw_graph(jobs: Sequence[Row], runs: Sequence[str], colours: Mapping[str, str]) -> Drawing:
    """Columns by depth; each run has a lane for training and one for each evaluation."""
    shown = list(runs)[:MAX_RUNS]
    drawn = [job for job in jobs if _run(job) is None or _run(job) in shown]
    graph = job_graph(drawn)
    column = {node: depth for depth, nodes in enumerate(_layers(graph)) for node in nodes}
    rows = _rows(drawn, shown, column)
    places = {
        node: (column[node] * (WIDTH + GAP_X), rows[node] * (HEIGHT + GAP_Y)) for node in graph
    }
    nodes = tuple(_node(drawn[index], *places[index], colours) for index in graph)
    edges = tuple(_edge(*places[start], *places[end]) for start, end in graph.edges)
    return Drawing(
        width=max(node.x for node in nodes) + WIDTH + 2,
        height=max(node.y for node in nodes) + HEIGHT + 2,
        nodes=nodes,
        edges=edges,
        num_runs_left_out=len(runs) - len(shown),
    )


def job_graph(jobs: Sequence[Row]) -> networkx.DiGraph:
    """Indices of `jobs`, joined by the files that they hand on, without what follows anyway."""
    makers = {out["path"]: i for i, job in enumerate(jobs) for out in job["outputs"].values()}
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(jobs)))
    for index, job in enumerate(jobs):
        for given in job["inputs"].values():
            if given["path"] in makers:
                graph.add_edge(makers[given["path"]], index)
    return networkx.transitive_reduction(graph)


def _layers(graph: networkx.DiGraph) -> list[list[int]]:
    return [sorted(layer) for layer in networkx.topological_generations(graph)]


def _rows(jobs: Sequence[Row], runs: Sequence[str], column: Mapping[int, int]) -> dict[int, float]:
    others = {_evaluation(job) for job in jobs}
    lanes = ["train", "evaluate", *sorted(name for name in others if name)]
    middle = (len(lanes) * len(runs) - 1) / 2
    shared: dict[int, list[int]] = {}
    rows: dict[int, float] = {}
    for index, job in enumerate(jobs):
        run = _run(job)
        if run is None:
            shared.setdefault(column[index], []).append(index)
        else:
            rows[index] = len(lanes) * runs.index(run) + lanes.index(_lane(job))
    for indices in shared.values():
        for place, index in enumerate(indices):
            rows[index] = middle + place - (len(indices) - 1) / 2
    top = min(rows.values())
    return {index: row - top for index, row in rows.items()}


def _lane(job: Row) -> str:
    """Training, the built-in evaluation, and every other of its name."""
    return _evaluation(job) or ("evaluate" if job["rule"] == "evaluate_stage" else "train")


def _evaluation(job: Row) -> str | None:
    """The name of an evaluation by Inspect AI."""
    is_one = job["rule"] == "inspect_stage"
    return f"inspect {job['settings']['task']['name']}" if is_one else None


def _node(job: Row, x: float, y: float, colours: Mapping[str, str]) -> Node:
    stage = _stage(job)
    titles = {
        "train_stage": f"train {stage}",
        "train_cookbook": f"train {stage}",
        "evaluate_stage": f"evaluate {stage}",
        "inspect_stage": f"{_evaluation(job)} {stage}",
        "export_run": "export",
        "prepare_model": "prepare model",
        "prepare_data": "prepare data",
        "check_setup": "check setup",
    }
    colour = colours.get(stage or "", "") if job["rule"] != "export_run" else ""
    where = f"{_run(job)} · " if _run(job) else ""
    title = titles.get(job["rule"], job["rule"])
    return Node(x + 1, y + 1, title, f"{where}{seconds(job['duration_s'])}", colour)


def seconds(duration_s: float) -> str:
    """A duration for a person."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, rest = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _edge(x0: float, y0: float, x1: float, y1: float) -> str:
    start_x, start_y = x0 + 1 + WIDTH, y0 + 1 + HEIGHT / 2
    end_x, end_y = x1 + 1, y1 + 1 + HEIGHT / 2
    bend = GAP_X * 0.7
    return (
        f"M{start_x:.1f} {start_y:.1f}C{start_x + bend:.1f} {start_y:.1f}"
        f" {end_x - bend:.1f} {end_y:.1f} {end_x:.1f} {end_y:.1f}"
    )


def _run(job: Row) -> str | None:
    return job["settings"].get("run")


def _stage(job: Row) -> str | None:
    stage = job["settings"].get("stage")
    return stage["name"] if isinstance(stage, dict) else stage
