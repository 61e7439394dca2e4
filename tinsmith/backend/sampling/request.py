"""What is asked of the sampler, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tinsmith.errors import TinsmithError

MAX_SAMPLES = 4096
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """Completions of one prompt; see `tinker.SamplingParams` for the fields.

    `stop_token_ids` end a completion and belong to it; so do the tokens that complete one of
    `stop_strings`. `temperature` 0 is greedy; `top_k` -1 and `top_p` 1 cut nothing off.
    """

    prompt: tuple[int, ...]
    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_token_ids: frozenset[int]
    stop_strings: tuple[str, ...] = ()
    wants_prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None

    def check(self, vocabulary_size: int, context_length: int) -> None:
        """Refuse what cannot be sampled, naming the field, the rule and the value."""
        rules = (
            (
                "num_samples",
                1 <= self.num_samples <= MAX_SAMPLES,
                f"1 to {MAX_SAMPLES}",
                self.num_samples,
            ),
            ("sampling_params.max_tokens", self.max_tokens >= 1, "at least 1", self.max_tokens),
            (
                "sampling_params.temperature",
                0 <= self.temperature < float("inf"),
                "0 or more and finite",
                self.temperature,
            ),
            (
                "sampling_params.top_k",
                self.top_k == -1 or self.top_k >= 1,
                "-1 (no limit) or at least 1",
                self.top_k,
            ),
            (
                "sampling_params.top_p",
                0 < self.top_p <= 1,
                "above 0 and at most 1",
                self.top_p,
            ),
            ("prompt", bool(self.prompt), "at least one token", "none"),
        )
        for field, holds, rule, value in rules:
            if not holds:
                raise TinsmithError(f"{field} must be {rule}, got {value}")
        self._check_tokens(vocabulary_size)
        # The last sampled token is never fed back, so it may lie one past the context.
        if len(self.prompt) + self.max_tokens - 1 > context_length:
            raise TinsmithError(
                f"prompt and max_tokens must fit the model's context of {context_length} tokens, "
                f"got {len(self.prompt)} + {self.max_tokens}; shorten one of them"
            )
        last_n = self.prompt_logprobs_last_n
        if last_n is not None and not 1 <= last_n <= len(self.prompt) - 1:
            raise TinsmithError(
                f"prompt_logprobs_last_n must be 1 to {len(self.prompt) - 1} "
                f"(prompt length - 1), got {last_n}"
            )

    def _check_tokens(self, vocabulary_size: int) -> None:
        for field, tokens in (("prompt", self.prompt), ("stop", self.stop_token_ids)):
            bad = [token for token in tokens if not 0 <= token < vocabulary_size]
            if bad:
                raise TinsmithError(
                    f"{field}: token ids must be 0 to {vocabulary_size - 1}, got {bad[0]}"
                )


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: its tokens with the stop token, and the log-probability of each under the
    distribution it was drawn from (temperature and truncation applied; greedy: temperature 1)."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    stop_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingResult:
    """Completions in order of their sample index; prompt log-probabilities [len(prompt)] with
    NaN where there is none (position 0, and positions that were not asked for)."""

    sequences: list[Completion]
    prompt_logprobs: np.ndarray | None
