"""The other ready configs of recipes: each trains what it says, on a tiny model."""

from pathlib import Path

import pytest

from tests.cookbook.ready import RUN, make_workflow, offline, read, rows, small
from tinsmith.serving import Endpoint

RATES = [1e-4, 1e-2]


@pytest.mark.parametrize(
    ("name", "stage", "metric"),
    [
        ("dpo", "dpo", "dpo_loss"),
        ("prompt-distillation", "distilled", "train_mean_nll"),
        ("on-policy-distillation", "student", "teacher_kl"),
    ],
)
def test_a_ready_config_trains_to_a_checkpoint_that_loads(
    name: str, stage: str, metric: str, hub: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    import tinker

    workflow = make_workflow(tmp_path, small(name, hub, endpoint), hub)
    target = f"{RUN}/{stage}/checkpoint.json"
    said = workflow.snakemake("--cores", "1", target, **offline(endpoint, hub))
    assert said.code == 0, said.text
    paths = read(tmp_path / target)["checkpoints"]
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        service.create_sampling_client(model_path=paths["sampler"]).result()
    metrics = rows(tmp_path / RUN / stage / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1]
    assert any(metric in name for name in metrics[0]), sorted(metrics[0])


def test_a_sweep_of_learning_rates_ends_in_a_plot_and_a_table(
    hub: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    config = small("learning-rate-sweep", hub, endpoint)
    config |= {"sweep": {"chat.arguments.learning_rate": RATES}}
    workflow = make_workflow(tmp_path, config, hub)
    said = workflow.snakemake("--cores", "1", **offline(endpoint, hub))
    assert said.code == 0, said.text
    runs = sorted((tmp_path / "results").glob("seed=0+*"))
    losses = [rows(run / "chat/metrics.jsonl")[-1]["train_mean_nll"] for run in runs]
    assert losses[0] != losses[1], "each run has its own rate"
    page = (tmp_path / "results/report.html").read_text()
    section = page.split("<h2>Sweep</h2>")[1].split("</section>")[0]
    assert "What was reached over chat.arguments.learning_rate" in section, "the plot"
    for loss in losses:
        assert f'<td class="number">{loss:.4g}</td>' in section
