"""Reinforcement learning recipes on a server in float32, where the sampler and the trainer must
agree."""

import json

from tests.cookbook.recipes import Metrics, Recipes

MODEL = "Qwen/Qwen3-8B"
ARITHMETIC = (f"model_name={MODEL}", "env=arithmetic", "lora_rank=8", "learning_rate=1e-3",
              "groups_per_batch=8", "group_size=4", "max_tokens=7", "eval_every=0",
              "save_every=2")  # fmt: skip
SAME_POLICY_KL_NATS = 1e-4


def sampler_trainer_kl(step: dict[str, float]) -> float:
    """The larger of the cookbook's two estimates of KL(sampler || trainer) in nats."""
    first, second = (step[f"optim/kl_sample_train_v{i}"] for i in (1, 2))
    return max(abs(first), second)


def assert_trains(metrics: Metrics, steps: int) -> None:
    assert [step["step"] for step in metrics] == list(range(steps))
    assert any(step.get("grad_norm", 0) > 0 for step in metrics), "no reward differed in its group"


def test_rl_loop_trains_on_gsm8k(recipes: Recipes):
    metrics = recipes.run(
        "rl_loop", "runs/rl_loop", f"model_name={MODEL}", "batch_size=8", "group_size=16",
        "max_tokens=12", "max_steps=3", "save_every=2", "lora_rank=8",
    )  # fmt: skip
    assert_trains(metrics, 3)
    assert any(0 < step["reward/total"] < 1 for step in metrics)
    lines = (recipes.folder / "runs" / "rl_loop" / "checkpoints.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["000002", "final"]


def test_math_rl_samples_from_the_policy_that_it_trains(recipes: Recipes):
    metrics = recipes.run("math_rl.train", "runs/synchronous", *ARITHMETIC, "max_steps=4",
                          "compute_post_kl=True")  # fmt: skip
    assert_trains(metrics, 4)
    assert max(map(sampler_trainer_kl, metrics)) < SAME_POLICY_KL_NATS
    assert max(step["kl_pre_post_v2"] for step in metrics) > 10 * SAME_POLICY_KL_NATS


def test_math_rl_off_policy_by_cispo_starts_on_policy(recipes: Recipes):
    """Later steps may train on what older weights sampled, and then the estimate tells so."""
    metrics = recipes.run("math_rl.train", "runs/off_policy", *ARITHMETIC, "max_steps=4",
                          "max_steps_off_policy=2", "loss_fn=cispo")  # fmt: skip
    assert_trains(metrics, 4)
    assert sampler_trainer_kl(metrics[0]) < SAME_POLICY_KL_NATS


def test_math_rl_stays_on_policy_when_it_trains_on_minibatches_as_they_come(recipes: Recipes):
    metrics = recipes.run(
        "math_rl.train", "runs/stream", *ARITHMETIC, "max_steps=3",
        "stream_minibatch_config.groups_per_batch=8", "stream_minibatch_config.num_minibatches=2",
    )  # fmt: skip
    assert_trains(metrics, 3)
    assert max(map(sampler_trainer_kl, metrics)) < SAME_POLICY_KL_NATS


def test_math_rl_takes_two_clipped_steps_on_what_it_sampled_once(recipes: Recipes):
    """PPO: the second half of a batch was sampled by the weights before the first half's step.
    A step whose first half has no signal moves nothing, so only some must tell of it."""
    metrics = recipes.run("math_rl.train", "runs/ppo", *ARITHMETIC, "max_steps=3", "loss_fn=ppo",
                          "num_substeps=2")  # fmt: skip
    assert_trains(metrics, 3)
    assert any(step["optim/kl_sample_train_v2"] > SAME_POLICY_KL_NATS for step in metrics)
