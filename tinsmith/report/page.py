"""results/report.html: one page that needs nothing but itself."""

from datetime import datetime
from importlib.resources import files
from pathlib import Path

import jinja2
import yaml

from tinsmith.config import ReportSettings
from tinsmith.config.settings import UNREPORTED
from tinsmith.files import write_text
from tinsmith.report.charts import accuracy_chart, curves_chart
from tinsmith.report.costs import costs_by_rule
from tinsmith.report.graph import draw_graph, seconds
from tinsmith.report.results import Results, read_results
from tinsmith.report.samples import compare_samples
from tinsmith.report.sweep import last_aim, sweep_charts
from tinsmith.report.words import (
    describe_data,
    describe_machine,
    describe_model,
    name_of_data,
    name_of_model,
)
from tinsmith.runs import BASE
from tinsmith.statistics import Interval


def write_report(settings: ReportSettings, page: Path) -> None:
    """Read what the rules wrote and draw it."""
    write_text(page, render(read_results(settings)))


def render(results: Results) -> str:
    """The page as text."""
    template = _environment().get_template("page.html.jinja")
    run_names = [run.name for variant in results.variants for run in variant.runs]
    colours = {BASE: "var(--base)"} | {
        stage: f"var(--series-{index % 8})" for index, stage in enumerate(results.stages)
    }
    return template.render(
        results=results,
        config=results.config,
        best=results.best,
        first=BASE,
        last=results.stages[-1],
        before=dict(zip(results.stages, results.evaluated, strict=False)),
        model=name_of_model(results),
        model_detail=describe_model(results),
        data_words=name_of_data(results),
        data_detail=describe_data(results),
        machine=describe_machine(results),
        colours=colours,
        config_text=_config_text(results),
        accuracy=accuracy_chart(results),
        curves={stage: curves_chart(results, stage) for stage in results.stages},
        graph=draw_graph(results.jobs, run_names, colours),
        costs=costs_by_rule(results.jobs),
        samples=compare_samples(results),
        sweeps=sweep_charts(results),
        aim=last_aim(results),
        latest=max(results.jobs, key=lambda job: job["ended"]),
        span_s=_span_s(results),
    )


def _config_text(results: Results) -> str:
    values = results.config.model_dump(mode="json", exclude=UNREPORTED)
    return yaml.safe_dump(values, sort_keys=False)


def _environment() -> jinja2.Environment:
    folder = files("tinsmith.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html", "jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.1f} %",
        "points": _points,
        "interval": lambda i: f"{100 * i.low:.1f} to {100 * i.high:.1f}",
        "seconds": seconds,
        "size": _size,
        "day": lambda text: datetime.fromisoformat(text).strftime("%-d %B %Y, %H:%M UTC"),
    }
    return environment


def _points(difference: Interval) -> str:
    return f"{100 * difference.mean:+.1f}".replace("-", "\N{MINUS SIGN}")


def _size(size_bytes: int) -> str:
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{size_bytes / (1 << 20):.0f} MiB"


def _span_s(results: Results) -> float:
    """Seconds of work; jobs that ran side by side count each."""
    return sum(job["duration_s"] for job in results.jobs)
