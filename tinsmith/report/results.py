"""What the rules wrote, read back for the report: runs, grouped into variants by swept values."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tinsmith.config import Config, ReportSettings
from tinsmith.runs import BASE
from tinsmith.statistics import Interval, bootstrap_mean, wilson

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunResults:
    """One run: for the base and every stage its evaluation, and for every stage its curve.

    `inspected` has the scores of each evaluation by Inspect AI, by its name and the scorer's, and
    by stage.
    """

    name: str
    seed: int
    evaluations: dict[str, Row]
    samples: dict[str, list[Row]]
    metrics: dict[str, list[Row]]
    export_check: Row
    inspected: dict[str, dict[str, Row]]


@dataclass(frozen=True, slots=True)
class Variant:
    """The runs that differ in their seed alone; `swept` are the values that tell it from others."""

    label: str
    runs: tuple[RunResults, ...]
    swept: Row

    def accuracy(self, stage: str) -> Interval:
        """Over the problems, each with its mean over samples and seeds; of a single run as its
        evaluation and its model card have it."""
        if len(self.runs) == 1:
            found = self.runs[0].evaluations[stage]
            return Interval(*(found[f"accuracy{end}"] for end in ("", "_low", "_high")))
        shares = list(self._shares(stage).values())
        if set(shares) in ({0.0}, {1.0}):  # nothing to draw from
            return wilson(round(sum(shares)), len(shares))
        return bootstrap_mean(shares, seed=0)

    def difference(self, stage: str, earlier: str) -> Interval:
        """The paired change of each problem's share of right samples, pooled over the seeds."""
        now, then = self._shares(stage), self._shares(earlier)
        return bootstrap_mean([now[problem] - then[problem] for problem in now], seed=0)

    def pass_at(self, stage: str, k: str) -> float:
        return fmean(run.evaluations[stage]["pass_at_k"][k] for run in self.runs)

    def _shares(self, stage: str) -> dict[str, float]:
        right: dict[str, list[float]] = {}
        for run in self.runs:
            for row in run.samples[stage]:
                right.setdefault(row["problem_id"], []).append(float(row["is_right"]))
        return {problem: fmean(values) for problem, values in right.items()}


@dataclass(frozen=True, slots=True)
class Results:
    """All that the page shows."""

    config: Config
    stages: tuple[str, ...]
    variants: tuple[Variant, ...]
    jobs: tuple[Row, ...]
    data_stats: dict[str, Row]

    @property
    def evaluated(self) -> tuple[str, ...]:
        return (BASE, *self.stages)

    @property
    def best(self) -> Variant:
        """The variant whose last stage is most accurate; the only one where nothing is swept."""
        return max(self.variants, key=lambda variant: variant.accuracy(self.stages[-1]).mean)


def reported_files(settings: ReportSettings) -> dict[str, Path]:
    """Every file that the page is made of."""
    root = Path(settings.config.results)
    files = {"setup": root / "setup/run_metadata.json"}
    for key in settings.models:
        files[f"models/{key}"] = Path(f"models/{key}.run_metadata.json")
    for key in settings.data:
        files[f"data/{key}"] = Path(f"data/{key}/run_metadata.json")
        files[f"data/{key}/stats"] = Path(f"data/{key}/stats.json")
    stages = [stage.name for stage in settings.config.stages]
    for run in settings.runs:
        folder = root / run
        files[f"{run}/export"] = folder / "export/run_metadata.json"
        files[f"{run}/export/check"] = folder / "export/check.json"
        for stage in stages:
            files[f"{run}/{stage}"] = folder / stage / "run_metadata.json"
            files[f"{run}/{stage}/metrics"] = folder / stage / "metrics.jsonl"
        for stage in (BASE, *stages):
            evaluation = folder / stage / "evaluation"
            files[f"{run}/{stage}/evaluation"] = evaluation / "evaluation.json"
            files[f"{run}/{stage}/samples"] = evaluation / "samples.jsonl"
            files[f"{run}/{stage}/evaluation/job"] = evaluation / "run_metadata.json"
            for task in settings.config.inspect:
                of_task = root / run / stage / "inspect" / task.name
                files[f"{run}/{stage}/inspect/{task.name}"] = of_task / "inspect.json"
                files[f"{run}/{stage}/inspect/{task.name}/job"] = of_task / "run_metadata.json"
    return files


def read_results(settings: ReportSettings) -> Results:
    """Read every reported file."""
    files = reported_files(settings)
    stages = tuple(stage.name for stage in settings.config.stages)
    by_label: dict[str, list[RunResults]] = {}
    swept: dict[str, Row] = {}
    for name, told in settings.runs.items():
        values = {key: value for key, value in told.items() if key != "seed"}
        label = ", ".join(f"{key} = {value}" for key, value in values.items())
        by_label.setdefault(label, []).append(_read_run(name, told["seed"], settings, files))
        swept[label] = values
    return Results(
        config=settings.config,
        stages=stages,
        variants=tuple(Variant(k, tuple(runs), swept[k]) for k, runs in by_label.items()),
        jobs=tuple(_json(p) for p in files.values() if p.name.endswith("run_metadata.json")),
        data_stats={key: _json(files[f"data/{key}/stats"]) for key in settings.data},
    )


def _read_run(name: str, seed: int, settings: ReportSettings, files: dict[str, Path]) -> RunResults:
    stages = tuple(stage.name for stage in settings.config.stages)
    evaluated = (BASE, *stages)
    inspected: dict[str, dict[str, Row]] = {}
    for task in settings.config.inspect:
        for stage in evaluated:
            scores = _json(files[f"{name}/{stage}/inspect/{task.name}"])["scores"]
            for scorer, score in scores.items():
                inspected.setdefault(f"{task.name}, {scorer}", {})[stage] = score
    return RunResults(
        name=name,
        seed=seed,
        evaluations={s: _json(files[f"{name}/{s}/evaluation"]) for s in evaluated},
        samples={s: _lines(files[f"{name}/{s}/samples"]) for s in evaluated},
        metrics={s: _lines(files[f"{name}/{s}/metrics"]) for s in stages},
        export_check=_json(files[f"{name}/export/check"]),
        inspected=inspected,
    )


def _json(path: Path) -> Row:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
