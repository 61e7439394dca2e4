"""The report: one page that needs nothing but itself and says what the files say."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.configs import config
from tinsmith.config import Monitor, ReportSettings, check
from tinsmith.plan import Plan
from tinsmith.report.charts import curves_chart
from tinsmith.report.graph import draw_graph, job_graph
from tinsmith.report.page import write_report
from tinsmith.report.results import read_results, reported_files
from tinsmith.report.sweep import last_aim, sweep_charts
from tinsmith.runs import expand

STAGES = ("base", "supervised", "grpo")
NUM_PROBLEMS = 20


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(value, list)
    text = "".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value)
    path.write_text(text)


def samples(stage: str, seed: int) -> list[dict[str, Any]]:
    """Two samples a problem; the more stages, the more problems are right."""
    solved = (4, 10, 16)[STAGES.index(stage)] + seed
    return [
        {
            "problem_id": f"p{problem}",
            "question": f"{problem}+<b>1</b>",
            "answer": str(problem + 1),
            "completion": f"<script>alert({problem})</script>",
            "is_right": problem < solved,
        }
        for problem in range(NUM_PROBLEMS)
        for _ in range(2)
    ]


def job(rule: str, settings: dict[str, Any], inputs: list[str], outputs: list[str]) -> Any:
    return {
        "rule": rule,
        "command": f"python -m scripts.{rule}",
        "settings": settings,
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:05+00:00",
        "duration_s": 65.0,
        "peak_memory_bytes": {"process": 1 << 28, "largest_child": 1 << 30},
        "inputs": {str(i): {"path": path} for i, path in enumerate(inputs)},
        "outputs": {str(i): {"path": path} for i, path in enumerate(outputs)},
        "packages": {"torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef", "is_dirty": False},
        "machine": {"processor": "a processor", "num_cores": 2},
        "accelerators": [],
    }


def evaluation(stage: str, seed: int) -> dict[str, Any]:
    rows = samples(stage, seed)
    share = sum(row["is_right"] for row in rows) / len(rows)
    return {
        "accuracy": share,
        "accuracy_low": share - 0.05,
        "accuracy_high": share + 0.05,
        "pass_at_k": {"1": share, "4": min(1.0, share + 0.1)},
    }


def write_results(settings: ReportSettings) -> None:
    """The files of a finished workflow, in the current folder."""
    for name, path in reported_files(settings).items():
        run, _, rest = name.partition("/")
        if path.name == "run_metadata.json" or path.name.endswith(".run_metadata.json"):
            continue
        seed = settings.runs[run]["seed"] if run in settings.runs else 0
        stage = rest.partition("/")[0]
        if path.name == "metrics.jsonl":
            rows = [{"step": s, "loss": 1 / (s + 1), "reward_mean": s / 4} for s in range(4)]
            rows[3]["validation_accuracy"] = 0.5
            write(path, rows)
        elif path.name == "evaluation.json":
            write(path, evaluation(stage, seed))
        elif path.name == "samples.jsonl":
            write(path, samples(stage, seed))
        elif path.name == "stats.json":
            write(path, {"num_train": 9, "num_heldout": 20, "duplicates": [{}], "rejected": []})
        else:
            write(path, {})
    write_jobs(settings)


def write_jobs(settings: ReportSettings) -> None:
    model, data = f"models/{settings.models[0]}", f"data/{settings.data[0]}"
    setup, train = "results/setup/setup.json", f"{data}/train.jsonl"
    write(Path("results/setup/run_metadata.json"), job("check_setup", {}, [], [setup]))
    write(Path(f"{model}.run_metadata.json"), job("prepare_model", {}, [setup], [model]))
    for key in settings.data:
        outputs = [f"data/{key}/train.jsonl"]
        write(Path(f"data/{key}/run_metadata.json"), job("prepare_data", {}, [setup], outputs))
    for run in settings.runs:
        folder, before = f"results/{run}", ""
        for stage in STAGES:
            checkpoint = f"{folder}/{stage}/checkpoint.json" if stage != "base" else ""
            if checkpoint:
                given = [setup, model, train, *([before] if before else [])]
                record = job(
                    "train_stage", {"run": run, "stage": {"name": stage}}, given, [checkpoint]
                )
                write(Path(f"{folder}/{stage}/run_metadata.json"), record)
            given = [model, *([checkpoint] if checkpoint else [])]
            record = job("evaluate_stage", {"run": run, "stage": stage}, given, [f"{stage}.json"])
            write(Path(f"{folder}/{stage}/evaluation/run_metadata.json"), record)
            before = checkpoint
        record = job("export_run", {"run": run, "stage": "grpo"}, [before], [f"{folder}/adapter"])
        write(Path(f"{folder}/export/run_metadata.json"), record)


def settings_for(**changes: Any) -> ReportSettings:
    data = {"kind": "arithmetic", "held_out": 500}
    checked = check(config(data=data, seeds=[0, 1]) | changes)
    return ReportSettings.model_validate_json(Plan(expand(checked), {}).report_settings(None))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReportSettings:
    monkeypatch.chdir(tmp_path)
    settings = settings_for()
    write_results(settings)
    return settings


def page_of(settings: ReportSettings) -> str:
    write_report(settings, Path("report.html"))
    return Path("report.html").read_text()


class References(HTMLParser):
    """Collects all that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag in ("script", "iframe", "object", "embed")
        names = ("src", "href", "xlink:href", "data", "action", "srcset")
        self.found += [value or "" for name, value in attrs if name in names]


def test_the_page_fetches_nothing(settings: ReportSettings) -> None:
    page = page_of(settings)
    references = References()
    references.feed(page)
    assert all(reference.startswith("#") for reference in references.found)
    assert references.scripts == 0
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_what_a_model_wrote_is_shown_and_never_run(settings: ReportSettings) -> None:
    page = page_of(settings)
    assert "<script>alert" not in page
    assert html.escape("<script>alert(0)</script>") in page
    assert "0+&lt;b&gt;1&lt;/b&gt;" in page


def test_accuracies_and_paired_differences_are_pooled_over_the_seeds(
    settings: ReportSettings,
) -> None:
    results = read_results(settings)
    assert results.best.accuracy("base").mean == pytest.approx(4.5 / 20)
    assert results.best.accuracy("grpo").mean == pytest.approx(16.5 / 20)
    gained = results.best.difference("grpo", "base")
    assert gained.mean == pytest.approx(12 / 20)
    assert 0 < gained.low < gained.mean < gained.high
    page = page_of(settings)
    for said in ("22.5 %", "82.5 %", "+60.0", "seed 0, %", "seed 1, %", "pass@4, %"):
        assert said in page


def test_the_accuracy_of_one_run_has_the_interval_of_its_evaluation(
    settings: ReportSettings,
) -> None:
    pooled = read_results(settings).best
    one = replace(pooled, runs=pooled.runs[:1])
    found = one.accuracy("grpo")
    assert (found.mean, found.low, found.high) == pytest.approx((16 / 20, 15 / 20, 17 / 20))


@pytest.mark.parametrize(("is_right", "bound"), [(True, "low"), (False, "high")])
def test_an_accuracy_of_all_or_none_still_has_an_interval(
    is_right: bool, bound: str, settings: ReportSettings
) -> None:
    best = read_results(settings).best
    rows = [row | {"is_right": is_right} for row in samples("grpo", 0)]
    same = replace(best, runs=tuple(replace(run, samples={"grpo": rows}) for run in best.runs))
    # Wilson (1927) of 20 of 20: z^2 / (20 + z^2) = 0.1611 from the end.
    far = 1 - 0.1611 if is_right else 0.1611
    assert getattr(same.accuracy("grpo"), bound) == pytest.approx(far, abs=1e-4)


def test_charts_take_their_colours_from_the_page_and_their_stand_ins_are_gone(
    settings: ReportSettings,
) -> None:
    page = page_of(settings)
    assert "var(--series-1)" in page
    assert "#0102" not in page


def test_curves_show_the_bounds_of_the_configs_monitors(settings: ReportSettings) -> None:
    def num_dashed(**bounds: float) -> int:
        monitors = (Monitor.model_validate({"metric": "reward_mean", **bounds}),) if bounds else ()
        watched = results.config.model_copy(update={"monitors": monitors})
        return curves_chart(replace(results, config=watched), "grpo").count("stroke-dasharray")

    results = read_results(settings)
    assert num_dashed(below=0.1) == num_dashed(above=0.7) == num_dashed() + 1


def test_every_job_is_drawn_and_joined_by_what_it_read(settings: ReportSettings) -> None:
    results = read_results(settings)
    names = [(job["rule"], job["settings"].get("run"), _stage(job)) for job in results.jobs]
    graph = job_graph(results.jobs)
    edges = {(names[start], names[end]) for start, end in graph.edges}
    train = ("train_stage", "seed=0", "supervised")
    assert len(names) == 3 + 2 * (2 + 3 + 1)
    assert (("prepare_model", None, None), train) in edges
    assert (train, ("train_stage", "seed=0", "grpo")) in edges
    assert (("train_stage", "seed=1", "grpo"), ("export_run", "seed=1", "grpo")) in edges
    assert (("check_setup", None, None), train) not in edges
    drawing = draw_graph(results.jobs, list(settings.runs), {})
    assert len(drawing.nodes) == len(names)
    assert len({(node.x, node.y) for node in drawing.nodes}) == len(names)
    assert "1 min 5 s" in page_of(settings)


def _stage(record: dict[str, Any]) -> str | None:
    stage = record["settings"].get("stage")
    return stage["name"] if isinstance(stage, dict) else stage


def test_a_sweep_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_for(sweep={"grpo.learning_rate": [1e-4, "auto"]})
    write_results(settings)
    page = page_of(settings)
    assert "<h2>Sweep</h2>" in page
    assert "grpo.learning_rate = 0.0001" in page
    assert "grpo.learning_rate = auto" in page


def test_a_swept_number_is_drawn_and_what_was_trained_for_stands_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_for(sweep={"grpo.learning_rate": [1e-3, 1e-5, 1e-4], "lora.rank": [4, 8]})
    write_results(settings)
    for run, swept in settings.runs.items():
        rows = [{"step": s, "train_mean_nll": swept["grpo.learning_rate"]} for s in range(20)]
        write(Path(f"results/{run}/grpo/metrics.jsonl"), rows)
    results = read_results(settings)
    aim = last_aim(results)
    assert aim is not None
    assert aim.title == "loss, nats a token"
    values = [variant.swept["grpo.learning_rate"] for variant in results.variants]
    assert aim.values == pytest.approx(values)
    page = page_of(settings)
    for key in ("grpo.learning_rate", "lora.rank"):
        assert f'aria-label="What was reached over {key}"' in page
    assert page.count('<td class="number">0.001</td>') == 2
    ticks = re.findall(r"<text[^>]*>(1e-0\d|0\.0+1)</text>", sweep_charts(results)[0])
    assert ticks[:3] == ["1e-05", "0.0001", "0.001"]


def test_without_a_sweep_none_is_shown(settings: ReportSettings) -> None:
    assert "<h2>Sweep</h2>" not in page_of(settings)


def test_the_page_is_a_function_of_the_files(settings: ReportSettings) -> None:
    assert page_of(settings) == page_of(settings)
