"""Samples become the datums of Tinker's losses, and back. Token ids go through as they are.

A datum's input is the sequence without its last token and its targets are the sequence without its
first, so that position t of the targets, weights, log-probabilities and advantages speaks of token
t + 1. What speaks of prompt tokens is zero, and only completion tokens are learned from.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tinker

from tinsmith.types import Sample


def cross_entropy_datum(sample: Sample) -> tinker.Datum:
    """loss = -sum_t weight_t * log p_t, with the sample's advantages as weights."""
    return _datum(sample, {"weights": sample.advantages})


def policy_datum(sample: Sample) -> tinker.Datum:
    """Of importance_sampling, ppo and cispo: what a token earned, and what its sampler gave it.

    loss = -sum_t f(p_t / q_t, advantage_t), with q the probabilities of the sampler, or of the
    policy before the update where the sample says so.
    """
    return _datum(sample, _policy_inputs(sample))


def sequence_policy_datum(sample: Sample) -> tinker.Datum:
    """Of gspo, whose ratio is of the completion as a whole: `sequence_ratio_mask` says which tokens
    belong to it."""
    ones = (1.0,) * len(sample.turn.completion.tokens)
    return _datum(sample, _policy_inputs(sample) | {"sequence_ratio_mask": ones})


DATUMS = {
    "cross_entropy": cross_entropy_datum,
    "importance_sampling": policy_datum,
    "ppo": policy_datum,
    "cispo": policy_datum,
    "gspo": sequence_policy_datum,
}


def with_trainer_logprobs(
    samples: Sequence[Sample], output: tinker.ForwardBackwardOutput
) -> list[Sample]:
    """The samples of a batch with the log-probabilities that the trainer gave their tokens."""
    return [
        replace(sample, trainer_logprobs=_of_completion(sample, record["logprobs"]))
        for sample, record in zip(samples, output.loss_fn_outputs, strict=True)
    ]


def _policy_inputs(sample: Sample) -> dict[str, tuple[float, ...]]:
    old = sample.old_logprobs or sample.turn.completion.logprobs
    return {"logprobs": old, "advantages": sample.advantages}


def _datum(sample: Sample, of_completion: dict[str, tuple[float, ...]]) -> tinker.Datum:
    tokens = [*sample.turn.prompt_tokens, *sample.turn.completion.tokens]
    inputs = {
        name: tinker.TensorData.from_numpy(_after_prompt(sample, values))
        for name, values in of_completion.items()
    }
    targets = tinker.TensorData.from_numpy(np.array(tokens[1:], dtype=np.int64))
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets, **inputs},
    )


def _after_prompt(sample: Sample, values: tuple[float, ...]) -> np.ndarray:
    assert len(values) == len(sample.turn.completion.tokens), "one number per completion token"
    num_prompt_targets = len(sample.turn.prompt_tokens) - 1
    return np.array([0.0] * num_prompt_targets + list(values), dtype=np.float32)


def _of_completion(sample: Sample, logprobs: tinker.TensorData) -> tuple[float, ...]:
    return tuple(logprobs.data[-len(sample.turn.completion.tokens) :])
