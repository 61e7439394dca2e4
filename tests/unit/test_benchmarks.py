"""The benchmarks' arithmetic, refusals and page; what they measure is no test's business."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results
from tinsmith.errors import TinsmithError


def test_the_page_holds_the_tables_of_what_was_measured():
    page = results.PAGE.read_text(encoding="utf-8")
    expected = results.page_with(results.tables(), page)
    assert page == expected, "python -m benchmarks.results writes it anew"


def test_a_table_holds_speeds_and_ratios_of_the_recorded_runs(tmp_path: Path):
    _record(tmp_path / "29m" / "sampling.json")
    table = results.tables(tmp_path)
    assert "| `python -m x` (0123456-dirty) | 8 prompts | ours | 2.00 | 50 | 2.00 | 50% |" in table
    assert "|  |  | peer | 4.00 | 25 | 1.00 |  |" in table


def test_figures_of_a_trial_are_refused(tmp_path: Path):
    path = tmp_path / "29m" / "sampling.json"
    _record(path, every=8)
    with pytest.raises(TinsmithError, match=r"sampling\.json must hold .* --every 8"):
        results.tables(tmp_path)
    _record(path, left_out=("16 prompts", "1 prompt"))
    with pytest.raises(TinsmithError, match=r"sampling\.json .* without 16 prompts, 1 prompt"):
        results.tables(tmp_path)


def test_figures_of_two_machines_do_not_share_a_table(tmp_path: Path):
    _record(tmp_path / "29m" / "sampling.json")
    _record(tmp_path / "29m" / "training.json", cpu="another")
    with pytest.raises(TinsmithError, match="must be of one machine"):
        results.tables(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_model_for_a_gpu_is_refused_without_one(capsys: pytest.CaptureFixture[str]):
    from benchmarks.harness import parse_arguments

    with pytest.raises(SystemExit):
        parse_arguments("", argv=["--preset", "4b"])
    assert "--preset 4b on cuda needs a CUDA GPU" in capsys.readouterr().err


def test_counted_operations_are_those_that_torch_counts(tmp_path: Path):
    """Within 5 %: torch counts attention too, and no backward to the first layer's input."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from benchmarks.arithmetic import count_weights
    from benchmarks.models import make_model
    from benchmarks.training import LORA
    from benchmarks.work import Ask, Row

    weights = count_weights(make_model(tmp_path, "8m"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.zeros(2, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        base(input_ids=ids, logits_to_keep=1)
    sampled = weights.sampling_flops([Ask([0] * 24, 1, 1)] * 2)
    assert counter.get_total_flops() == pytest.approx(sampled, rel=0.05)
    model = get_peft_model(base, LORA)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    trained = weights.training_flops([Row([0] * 25)] * 2)
    assert counter.get_total_flops() == pytest.approx(trained, rel=0.05)


def _record(
    path: Path, *, every: int = 1, cpu: str = "a CPU", left_out: tuple[str, ...] = ()
) -> None:
    sides = [
        {"name": "ours", "num_tokens": 100, "median_s": 2.0, "runs_s": [2.0], "flops": 1e9},
        {"name": "peer", "num_tokens": 100, "median_s": 4.0, "runs_s": [4.0], "flops": None},
    ]
    settings = {"device": "cpu", "threads": 2, "repeats": 3, "every": every, "left_out": left_out}
    record = {
        "command": "python -m x",
        "commit": "0123456789-dirty",
        "hardware": {"cpu": cpu},
        "settings": settings,
        "product_flops_per_s": 1e9,
        "cases": [{"name": "8 prompts", "sides": sides}],
        "figures": [],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
