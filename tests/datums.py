"""Random training data for the backend's tests."""

from collections.abc import Sequence

import numpy as np

from tinsmith.backend.datums import Datum

VOCABULARY_SIZE = 400
LENGTHS = (5, 1, 17, 9, 30, 9, 2)


def cross_entropy_data(seed: int, lengths: Sequence[int] = LENGTHS) -> list[Datum]:
    """Weights are positive, negative and, for about a third of the tokens, zero."""
    random = np.random.default_rng(seed)
    return [
        Datum(*_tokens(random, size), {"weights": _coefficients(random, size)}) for size in lengths
    ]


def policy_data(seed: int, lengths: Sequence[int] = LENGTHS) -> list[Datum]:
    """Sampling log-probabilities near those of a model that knows little."""
    random = np.random.default_rng(seed)
    data = []
    for size in lengths:
        logprobs = (-5 + random.normal(size=size)).astype(np.float32)
        inputs = {"logprobs": logprobs, "advantages": _coefficients(random, size)}
        data.append(Datum(*_tokens(random, size), inputs))
    return data


def _tokens(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = random.integers(0, VOCABULARY_SIZE, size + 1)
    return tokens[:-1], tokens[1:]


def _coefficients(random: np.random.Generator, size: int) -> np.ndarray:
    values = random.normal(size=size) * (random.random(size) > 0.3)
    return values.astype(np.float32)
