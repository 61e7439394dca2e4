"""What is asked of the sampler, and what it answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tinsmith.errors import TinsmithError

MAX_SAMPLES = 4096
DEFAULT_MAX_TOKENS = 256
MAX_TOP_K = 2**31 - 1
# Of one answer's top-k, target or alternative log-probabilities: 8 bytes each.
MAX_CELLS = 1 << 24


@dataclass(frozen=True, slots=True)
class TargetTokens:
    """Token ids to score in the prompt: `ids[c]` as the successor of prompt token `rows[c]`.

    -1 is a cell that asks for nothing. `rows` ascends; `num_rows` is what its request said.
    """

    rows: np.ndarray
    ids: np.ndarray
    num_rows: int


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """Completions of one prompt; see `tinker.SamplingParams` and `tinker.types.SampleRequest`.

    `stop_token_ids` end a completion and belong to it; so do the tokens that complete one of
    `stop_strings`. `temperature` 0 is greedy; `top_k` -1, `top_p` 1 and `min_p` 0, which
    the wire lacks and the server sets, cut nothing off.
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
    min_p: float = 0.0
    wants_prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_tokens: TargetTokens | None = None
    prompt_alt_tokens_k: int = 0

    @property
    def is_truncated(self) -> bool:
        """Whether tokens of some probability are never drawn."""
        return self.top_k != -1 or self.top_p < 1 or self.min_p > 0

    def check(self, vocabulary_size: int, context_length: int) -> None:
        """Refuse what cannot be sampled, naming the field, the rule and the value."""
        for field, holds, rule, value in self._rules(vocabulary_size):
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
        self._check_targets(vocabulary_size)
        self._check_sizes()

    def _rules(self, vocabulary_size: int) -> Iterator[tuple[str, bool, str, object]]:
        """Field, whether its rule holds, the rule, the value."""
        samples, params = self.num_samples, "sampling_params"
        yield "num_samples", 1 <= samples <= MAX_SAMPLES, f"1 to {MAX_SAMPLES}", samples
        yield f"{params}.max_tokens", self.max_tokens >= 1, "at least 1", self.max_tokens
        is_finite = 0 <= self.temperature < float("inf")
        yield f"{params}.temperature", is_finite, "0 or more and finite", self.temperature
        is_limit = self.top_k == -1 or 1 <= self.top_k <= MAX_TOP_K
        yield f"{params}.top_k", is_limit, f"-1 (no limit) or 1 to {MAX_TOP_K}", self.top_k
        yield f"{params}.top_p", 0 < self.top_p <= 1, "above 0 and at most 1", self.top_p
        yield "prompt", bool(self.prompt), "at least one token", "none"
        for field in ("topk_prompt_logprobs", "topk_sample_logprobs"):
            k = getattr(self, field)
            rule = f"0 to {vocabulary_size} (the vocabulary's size)"
            yield field, 0 <= k <= vocabulary_size, rule, k
        k = self.prompt_alt_tokens_k
        yield "prompt_alt_tokens_k", k >= 0, "0 or more", k

    def _check_targets(self, vocabulary_size: int) -> None:
        targets = self.target_tokens
        if targets is None:
            return
        if targets.num_rows != len(self.prompt) - 1:
            raise TinsmithError(
                f"target_prompt_logprobs must have {len(self.prompt) - 1} rows "
                f"(prompt length - 1), got {targets.num_rows}"
            )
        bad = targets.ids[(targets.ids < -1) | (targets.ids >= vocabulary_size)]
        if len(bad):
            raise TinsmithError(
                f"target_prompt_logprobs: token ids must be 0 to {vocabulary_size - 1}, or -1 for "
                f"a cell without one, got {bad[0]}"
            )
        if not (targets.ids >= 0).any():
            raise TinsmithError("target_prompt_logprobs must name at least one token id, got none")

    def _check_sizes(self) -> None:
        length = len(self.prompt)
        sizes = (
            ("topk_prompt_logprobs", "prompt length x k", length * self.topk_prompt_logprobs),
            (
                "topk_sample_logprobs",
                "num_samples x max_tokens x k",
                self.num_samples * self.max_tokens * self.topk_sample_logprobs,
            ),
            ("prompt_alt_tokens_k", "prompt length x k", length * self.prompt_alt_tokens_k),
        )
        for field, what, size in sizes:
            if size > MAX_CELLS:
                raise TinsmithError(
                    f"{field}: {what} must be at most {MAX_CELLS}, got {size}; ask for less at once"
                )

    def _check_tokens(self, vocabulary_size: int) -> None:
        for field, tokens in (("prompt", self.prompt), ("stop", self.stop_token_ids)):
            bad = [token for token in tokens if not 0 <= token < vocabulary_size]
            if bad:
                raise TinsmithError(
                    f"{field}: token ids must be 0 to {vocabulary_size - 1}, got {bad[0]}"
                )


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The k likeliest tokens of each position, likeliest first: ids and log-probabilities
    [positions, k]. A cell without a token holds id 0 and EMPTY, as the wire has it."""

    token_ids: np.ndarray
    logprobs: np.ndarray


EMPTY = -99999.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: its tokens with the stop token, and the log-probability of each under the
    distribution it was drawn from (temperature and truncation applied; greedy: temperature 1).
    `top` is of that same distribution."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    stop_reason: Literal["stop", "length"]
    top: TopLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Growth:
    """The tokens by which a completion under way has grown, as `Completion` tells of all."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    top: TopLogprobs | None = None


@dataclass(frozen=True, slots=True)
class PromptScores:
    """What the prefill says of the prompt, at temperature 1; None for what was not asked for.

    `logprobs` [T] and `top` [T, k] are of each prompt token, NaN or EMPTY where not scored (always
    position 0). `targets` is of each cell of the request, 0 where that is -1. `alternatives` are
    token ids and log-probabilities [T - 1, k] of draws in place of prompt tokens 1 to T - 1.
    """

    logprobs: np.ndarray | None = None
    top: TopLogprobs | None = None
    targets: np.ndarray | None = None
    alternatives: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class SamplingResult:
    """Completions in order of their sample index, and what was asked of the prompt."""

    sequences: list[Completion]
    prompt: PromptScores
