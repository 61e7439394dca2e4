"""The work that is measured, and the SDK program that asks a server for it.

It needs the SDK and numpy alone, so that it also runs where a peer's SDK is installed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tinker
from tinker import types

VOCABULARY = 256  # bytes


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence to train on, and how many of its first tokens carry no loss."""

    tokens: list[int]
    num_prompt: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, how many completions of it, and of what length."""

    prompt: list[int]
    num_samples: int
    max_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are sampled."""
        return self.num_samples * self.max_tokens


def ragged_rows() -> list[Row]:
    """64 sequences of 64 to 192 tokens."""
    rng = random.Random(0)
    return [Row(_tokens(rng, rng.randint(64, 192))) for _ in range(64)]


def prompted_rows() -> list[Row]:
    """A prompt of 512 tokens with 8 completions of 32."""
    rng = random.Random(1)
    prompt = _tokens(rng, 512)
    return [Row(prompt + _tokens(rng, 32), 512) for _ in range(8)]


def even_rows(count: int, length: int) -> list[Row]:
    """`count` sequences of `length` tokens."""
    rng = random.Random(2)
    return [Row(_tokens(rng, length)) for _ in range(count)]


def ragged_asks() -> list[Ask]:
    """64 prompts of 8 to 64 tokens, completions of 16 to 128."""
    rng = random.Random(0)
    return [Ask(_tokens(rng, rng.randint(8, 64)), 1, rng.randint(16, 128)) for _ in range(64)]


def full_asks() -> list[Ask]:
    """The same 64 prompts, completions of 128 tokens each."""
    return [replace(ask, max_tokens=128) for ask in ragged_asks()]


def grouped_asks() -> list[Ask]:
    """16 prompts of 64 tokens, 8 completions of 128 tokens each."""
    rng = random.Random(1)
    return [Ask(_tokens(rng, 64), 8, 128) for _ in range(16)]


def single_ask() -> list[Ask]:
    """One prompt of 64 tokens, one completion of 128."""
    return [Ask(_tokens(random.Random(2), 64), 1, 128)]


def many_asks() -> list[Ask]:
    """1,000 prompts of 8 to 64 tokens, completions of 8 tokens."""
    rng = random.Random(3)
    return [Ask(_tokens(rng, rng.randint(8, 64)), 1, 8) for _ in range(1000)]


def even_asks(count: int, max_tokens: int) -> list[Ask]:
    """`count` prompts of 32 tokens, a completion of `max_tokens` each."""
    rng = random.Random(4)
    return [Ask(_tokens(rng, 32), 1, max_tokens) for _ in range(count)]


def _tokens(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(size)]


def datum(row: Row) -> types.Datum:
    """A row for cross_entropy."""
    weights = np.ones(len(row.tokens) - 1, np.float32)
    weights[: max(0, row.num_prompt - 1)] = 0
    return types.Datum(
        model_input=types.ModelInput.from_ints(row.tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(np.array(row.tokens[1:])),
            "weights": types.TensorData.from_numpy(weights),
        },
    )


def train(
    *work: tuple[tinker.TrainingClient, list[types.Datum]],
    loss: types.LossFnType = "cross_entropy",
    learning_rate: float = 1e-5,
) -> None:
    """One forward_backward and optim_step of each client, all submitted together."""
    params = types.AdamParams(learning_rate=learning_rate)
    futures = [
        (training.forward_backward(data, loss), training.optim_step(params))
        for training, data in work
    ]
    for scored, stepped in futures:
        scored.result()
        stepped.result()


def sampling_client(training: tinker.TrainingClient) -> tinker.SamplingClient:
    """A client of the weights as they are now."""
    return training.save_weights_and_get_sampling_client().result()


def sample(*work: tuple[tinker.SamplingClient, Sequence[Ask]]) -> None:
    """All completions of all clients at once, at temperature 1, each to its full length."""
    futures = [
        (
            ask,
            sampler.sample(
                types.ModelInput.from_ints(ask.prompt),
                num_samples=ask.num_samples,
                sampling_params=types.SamplingParams(max_tokens=ask.max_tokens, stop=[], seed=i),
            ),
        )
        for sampler, asks in work
        for i, ask in enumerate(asks)
    ]
    for ask, future in futures:
        lengths = [len(sequence.tokens) for sequence in future.result().sequences]
        assert lengths == [ask.max_tokens] * ask.num_samples, lengths
