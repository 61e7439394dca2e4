"""Datums: targets shifted by one, prompts masked, token ids untouched."""

from dataclasses import replace

import numpy as np
import tinker

from tinsmith.datums import (
    cross_entropy_datum,
    policy_datum,
    with_trainer_logprobs,
)
from tinsmith.types import Completion, Problem, Sample, Turn

COMPLETION = Completion((20, 21, 22), (-0.5, -1.0, -0.25), "text", is_finished=True)
SAMPLE = Sample(
    problem=Problem("id", "question", "answer"),
    group=0,
    rollout=0,
    turn=Turn("policy", (10, 11, 12), COMPLETION),
    reward=None,
    advantages=(0.75, 0.75, 0.75),
)


def field(datum: tinker.Datum, name: str) -> list[float]:
    return list(datum.loss_fn_inputs[name].data)


def test_targets_are_the_sequence_one_token_on():
    datum = policy_datum(SAMPLE)
    assert datum.model_input.to_ints() == [10, 11, 12, 20, 21]
    assert field(datum, "target_tokens") == [11, 12, 20, 21, 22]


def test_prompt_tokens_have_no_weight_and_every_completion_token_has_the_advantage():
    assert field(cross_entropy_datum(SAMPLE), "weights") == [0, 0, 0.75, 0.75, 0.75]
    assert field(policy_datum(SAMPLE), "advantages") == [0, 0, 0.75, 0.75, 0.75]


def test_the_samplers_logprobs_stand_at_the_tokens_they_belong_to():
    assert field(policy_datum(SAMPLE), "logprobs") == [0, 0, -0.5, -1.0, -0.25]


def test_a_prompt_of_one_token_leaves_no_masked_target():
    sample = replace(SAMPLE, turn=Turn("policy", (10,), COMPLETION))
    datum = cross_entropy_datum(sample)
    assert field(datum, "target_tokens") == [20, 21, 22]
    assert field(datum, "weights") == [0.75, 0.75, 0.75]


def test_the_trainers_logprobs_of_completion_tokens_come_back_to_their_sample():
    logprobs = tinker.TensorData.from_numpy(np.array([-9, -9, -1, -2, -3], dtype=np.float32))
    output = tinker.ForwardBackwardOutput("", [{"logprobs": logprobs}], {})
    assert with_trainer_logprobs([SAMPLE], output)[0].trainer_logprobs == (-1, -2, -3)
