"""Recipes that compare two models: a policy with its reference, a student with its teacher."""

import json
import math
from pathlib import Path

import pytest

from tests.cookbook.recipes import Metrics, Recipes

MODEL = "Qwen/Qwen3-8B"
SAME_MODEL_KL_NATS = 1e-4


@pytest.fixture(scope="module")
def dpo_metrics(recipes: Recipes) -> Metrics:
    """Three steps of DPO."""
    return recipes.run("preference.dpo.train", "runs/dpo", f"model_name={MODEL}", "dataset=hhh",
                       "batch_size=8", "learning_rate=1e-2", "max_steps=3")  # fmt: skip


def test_dpo_starts_at_ln_2_and_goes_down(dpo_metrics: Metrics):
    """Before the first step the policy is the reference, so that -ln sigmoid(0) = ln 2 is lost."""
    assert dpo_metrics[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert dpo_metrics[2]["dpo_loss"] < math.log(2) - 0.1


def teacher_kl(recipes: Recipes, log_path: str, *teacher: str) -> float:
    """What on-policy distillation logs of the untrained student's KL from a teacher, in nats."""
    (first,) = recipes.run(
        "distillation.on_policy_distillation", log_path, f"model_name={MODEL}", "lora_rank=8",
        "groups_per_batch=4", "group_size=4", "max_tokens=12", "max_steps=1", *teacher,
    )  # fmt: skip
    return first["teacher_kl"]


def test_a_student_is_no_kl_away_from_its_own_model_as_teacher(recipes: Recipes):
    kl = teacher_kl(recipes, "runs/itself", f"teacher_model={MODEL}")
    assert abs(kl) < SAME_MODEL_KL_NATS


@pytest.mark.usefixtures("dpo_metrics")
def test_a_student_is_some_kl_away_from_a_trained_checkpoint_as_teacher(recipes: Recipes):
    checkpoint = sampler_path(recipes.folder / "runs" / "dpo")
    kl = teacher_kl(recipes, "runs/trained", f"teacher_model={MODEL}",
                    f"teacher_checkpoint={checkpoint}")  # fmt: skip
    assert abs(kl) > 100 * SAME_MODEL_KL_NATS  # an estimate from samples: its sign is chance


def sampler_path(log_path: Path) -> str:
    """The last weights for sampling that a recipe saved."""
    last = (log_path / "checkpoints.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["sampler_path"]
