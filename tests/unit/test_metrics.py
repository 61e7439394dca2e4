"""Metrics of a step by hand."""

from dataclasses import replace

import pytest

from tinsmith.metrics import kl_nats, sampling_metrics, share_clipped, share_zero_variance
from tinsmith.types import Completion, Group, Problem, Reward, Rollout, Sample, Turn

PROBLEM = Problem("id", "question", "answer")


def sample(logprobs: tuple[float, ...], reward: float, trainer: tuple[float, ...]) -> Sample:
    completion = Completion((1,) * len(logprobs), logprobs, "", is_finished=reward > 0)
    graded = Reward(reward, {"correct": reward, "short": 0.0}, is_right=reward > 0)
    turn = Turn("policy", (1,), completion)
    return Sample(PROBLEM, 0, 0, turn, graded, (1.0,) * len(logprobs), trainer)


SAMPLES = [sample((-1.0, -2.0), 1.0, (-1.5, -2.0)), sample((-3.0,), 0.0, (-2.9,))]


def group(*rewards: float) -> Group:
    graded = [Reward(value, {}, is_right=False) for value in rewards]
    return Group(PROBLEM, tuple(Rollout(PROBLEM, (), {"policy": reward}) for reward in graded))


def test_entropy_is_the_mean_surprise_of_the_sampled_tokens():
    assert sampling_metrics(SAMPLES)["entropy_nats"] == pytest.approx(2.0)


def test_rewards_are_averaged_as_a_whole_and_by_term():
    metrics = sampling_metrics(SAMPLES)
    assert metrics["reward_mean"] == 0.5
    assert metrics["reward_correct_mean"] == 0.5
    assert metrics["reward_short_mean"] == 0.0


def test_lengths_and_ends_are_of_completions():
    metrics = sampling_metrics(SAMPLES)
    assert metrics["completion_length_mean"] == 1.5
    assert metrics["share_finished"] == 0.5
    assert metrics["num_sampled_tokens"] == 3


def test_kl_is_the_mean_of_sampler_less_trainer_over_tokens_not_samples():
    assert kl_nats(SAMPLES) == pytest.approx((0.5 + 0.0 - 0.1) / 3)


@pytest.mark.parametrize(
    ("loss", "old", "expected"),
    [
        ("ppo", None, 1 / 3),  # ratios e^-0.5, 1 and e^0.1
        ("ppo", (-2.0, -2.0), 1 / 2),  # e^0.5 and 1, of one completion
        ("gspo", None, 2 / 3),  # e^-0.25 twice, and e^0.1
    ],
)
def test_a_token_is_clipped_by_the_ratio_that_its_loss_takes(
    loss: str, old: tuple[float, ...] | None, expected: float
):
    samples = [replace(SAMPLES[0], old_logprobs=old)] if old else SAMPLES
    assert share_clipped(samples, loss, 0.8, 1.2) == pytest.approx(expected)


def test_zero_variance_counts_groups_whose_rewards_are_all_equal():
    assert share_zero_variance([group(1, 1), group(1, 0), group(0, 0)]) == pytest.approx(2 / 3)


def test_a_group_in_which_one_of_two_speakers_varies_has_signal():
    rewards = [
        {"first": Reward(a, {}, is_right=False), "second": Reward(b, {}, is_right=False)}
        for a, b in ((1.0, 0.0), (1.0, 1.0))
    ]
    debate = Group(PROBLEM, tuple(Rollout(PROBLEM, (), r) for r in rewards))
    assert share_zero_variance([debate]) == 0.0
