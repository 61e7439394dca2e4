"""The settings of the policy losses and the weighting of tokens, by hand."""

import numpy as np
import pytest

from tinsmith.objectives.policy_losses import (
    kl_penalties,
    loss_config,
    token_weights,
    truncated_ratio,
)


def test_a_loss_that_clips_gets_both_bounds_and_the_users_where_given():
    assert loss_config("ppo", None, 1.5) == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.5}
    assert loss_config("cispo", 0.5, None) == {
        "clip_low_threshold": 0.5,
        "clip_high_threshold": 4.0,
    }


def test_importance_sampling_has_no_settings():
    assert loss_config("importance_sampling", None, None) is None


@pytest.mark.parametrize(
    ("normalise_by", "expected"),
    [("none", [1, 1]), ("token", [1 / 8, 1 / 8]), ("sequence", [1 / 4, 1 / 12])],
)
def test_tokens_of_sequences_of_2_and_6_weigh(normalise_by: str, expected: list[float]):
    assert token_weights([2, 6], normalise_by) == pytest.approx(expected)


def test_the_weights_of_all_tokens_sum_to_one_where_the_loss_is_a_mean():
    for normalise_by in ("token", "sequence"):
        weights = token_weights([3, 5, 9], normalise_by)
        assert weights @ np.array([3, 5, 9]) == pytest.approx(1.0)


def test_the_ratio_is_trainer_over_sampler_up_to_the_limit():
    trainer, sampler = np.log([0.5, 0.9, 0.3]).tolist(), np.log([0.25, 0.1, 0.6]).tolist()
    assert truncated_ratio(trainer, sampler, 3.0) == pytest.approx([2.0, 3.0, 0.5])


def test_a_hopeless_gap_gives_the_limit_and_no_overflow():
    assert truncated_ratio([0.0], [-1e6], 2.0) == pytest.approx([2.0])


def test_the_kl_penalty_lowers_what_the_policy_prefers_more_than_the_reference_does():
    first, second = kl_penalties([[-1.0, -2.0], [-1.0]], [[-3.0, -2.0], [-2.0]], 0.5)
    assert first == pytest.approx([-0.5 * (2 - 1), -0.5 * (0 - 1)])
    assert second == pytest.approx([0.0])


def test_the_kl_penalty_adds_nothing_in_sum():
    rng = np.random.default_rng(0)
    q, p = ([rng.normal(size=n).tolist() for n in (4, 7)] for _ in range(2))
    assert np.concatenate(kl_penalties(q, p, 3.0)).sum() == pytest.approx(0.0, abs=1e-12)
