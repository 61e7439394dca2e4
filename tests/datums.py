"""Random training data for the backend's tests."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinsmith.backend.model.datums import Datum

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


def gspo_data(seed: int, lengths: Sequence[int] = LENGTHS) -> list[Datum]:
    """Every other token counts in the sequence's ratio, whether it has an advantage or not."""
    return [
        replace(
            datum,
            loss_inputs={
                **datum.loss_inputs,
                "sequence_ratio_mask": (np.arange(len(datum.tokens)) % 2 == 0).astype(np.float32),
            },
        )
        for datum in policy_data(seed, lengths)
    ]


def top_k_data(seed: int, lengths: Sequence[int] = LENGTHS, k: int = 3) -> list[Datum]:
    """K targets a token with weights of any sign; about a third of the tokens have none."""
    random = np.random.default_rng(seed)
    data = []
    for size in lengths:
        tokens, _ = _tokens(random, size)
        targets_TK = random.integers(0, VOCABULARY_SIZE, (size, k))
        weights_TK = random.normal(size=(size, k)) * (random.random((size, 1)) > 0.3)
        data.append(Datum(tokens, targets_TK, {"weights": weights_TK.astype(np.float32)}))
    return data


def _tokens(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = random.integers(0, VOCABULARY_SIZE, size + 1)
    return tokens[:-1], tokens[1:]


def _coefficients(random: np.random.Generator, size: int) -> np.ndarray:
    values = random.normal(size=size) * (random.random(size) > 0.3)
    return values.astype(np.float32)
