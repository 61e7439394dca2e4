"""Advantages, selection and the learning rate against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tinsmith.config import Grpo, Supervised
from tinsmith.errors import TinsmithError
from tinsmith.objectives.advantages import centre, has_variance, standardise
from tinsmith.objectives.learning_rate import (
    batch_size_factor,
    lora_learning_rate,
    resolve_learning_rate,
)
from tinsmith.objectives.selection import keep_best, keep_correct, keep_winners

REWARDS_P_G = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.2, 0.5, 0.0]])
IS_RIGHT_P_G = np.array([[True, False, False, False], [True] * 4, [False] * 4])
VERDICTS_P_G = np.array([[1.0, -1.0, 0.0, 0.2], [0.0] * 4, [-0.1, 0.1, 0.0, -1.0]])

some_rewards = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8),
    elements=st.floats(-1e3, 1e3, width=32),
)


def test_centred_advantages_are_the_rewards_less_the_mean_of_their_group():
    expected = [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [0.2, -0.1, 0.2, -0.3]]
    assert centre(REWARDS_P_G) == pytest.approx(np.array(expected))


def test_standardised_advantages_divide_by_the_populations_standard_deviation():
    std = math.sqrt(3) / 4  # of 1, 0, 0, 0
    first = standardise(REWARDS_P_G)[0]
    assert first == pytest.approx([0.75 / std] + [-0.25 / std] * 3, rel=1e-5)


def test_standardised_advantages_of_equal_rewards_are_zero_and_finite():
    assert standardise(REWARDS_P_G)[1].tolist() == [0, 0, 0, 0]


@given(some_rewards)
def test_advantages_of_a_group_sum_to_zero(rewards_P_G: np.ndarray):
    assert centre(rewards_P_G).sum(axis=1) == pytest.approx(0, abs=1e-9)


@given(some_rewards, st.floats(-100, 100))
def test_advantages_do_not_depend_on_a_constant_added_to_all_rewards(
    rewards_P_G: np.ndarray, constant: float
):
    assert centre(rewards_P_G + constant) == pytest.approx(centre(rewards_P_G), abs=1e-9)


def test_only_groups_whose_rewards_differ_have_variance():
    assert has_variance(REWARDS_P_G).tolist() == [True, False, True]


def test_keeping_the_correct_keeps_right_answers_whatever_their_reward():
    expected = [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert keep_correct(REWARDS_P_G, IS_RIGHT_P_G, VERDICTS_P_G).tolist() == expected


def test_keeping_the_best_keeps_ties_and_nothing_of_a_group_without_variance():
    expected = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert keep_best(REWARDS_P_G, IS_RIGHT_P_G, VERDICTS_P_G).tolist() == expected


def test_keeping_winners_keeps_neither_speaker_of_a_draw():
    expected = [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert keep_winners(REWARDS_P_G, IS_RIGHT_P_G, VERDICTS_P_G).tolist() == expected


def test_the_rule_gives_llama_8b_the_published_learning_rate():
    assert lora_learning_rate("llama", 4096) == pytest.approx(2.8e-4, rel=0.03)
    assert lora_learning_rate("llama", 4096) == pytest.approx(5e-4 * (2000 / 4096) ** 0.781)


def test_the_rule_hardly_depends_on_the_size_of_a_qwen():
    assert lora_learning_rate("qwen3", 2000) == pytest.approx(5e-4)
    assert lora_learning_rate("qwen3", 4096) == pytest.approx(4.729e-4, rel=1e-3)


def test_the_rule_refuses_an_unknown_architecture_and_says_to_set_a_number():
    with pytest.raises(TinsmithError, match=r"'gemma3'.*set learning_rate to a number"):
        lora_learning_rate("gemma3", 2000)


def test_four_times_the_reference_batch_doubles_the_learning_rate():
    assert batch_size_factor(64, 16) == pytest.approx(2.0)
    assert batch_size_factor(64, None) == 1.0


def test_a_stage_takes_its_rate_from_the_model_and_its_batch(tmp_path: Path):
    model = {"model_type": "qwen3", "hidden_size": 2000}
    (tmp_path / "config.json").write_text(json.dumps(model))
    supervised = Supervised(kind="supervised", steps=1, batch_size=64, reference_batch_size=16)
    grpo = Grpo(
        kind="grpo", steps=1, problems_per_step=8, samples_per_problem=8, reference_batch_size=16
    )
    assert resolve_learning_rate(supervised, tmp_path) == pytest.approx(1e-3)
    assert resolve_learning_rate(grpo, tmp_path) == pytest.approx(1e-3)


def test_a_number_in_the_config_is_the_learning_rate(tmp_path: Path):
    stage = Supervised(kind="supervised", steps=1, learning_rate=0.5)
    assert resolve_learning_rate(stage, tmp_path) == 0.5
