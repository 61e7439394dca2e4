"""Requests under way and their running completions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from tinsmith.backend.sampling.choose import Choice
from tinsmith.backend.sampling.prompt_keys_values import PromptKeysValues
from tinsmith.backend.sampling.request import (
    Completion,
    Growth,
    PromptScores,
    SamplingRequest,
    SamplingResult,
    TopLogprobs,
)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that went through the model: the logits of its next token and its keys and values,
    in `row` of what was prefilled together."""

    logits_V: Tensor
    keys_values: PromptKeysValues
    row: int

    def alone(self) -> "Prefilled":
        """The same without what was prefilled beside it."""
        return Prefilled(self.logits_V.clone(), self.keys_values.only(self.row), 0)


@dataclass(slots=True, eq=False)
class Job:
    """A request under way, and who waits for its result.

    `watch`, where there is one, is told of every completion, by its sample index, what it has
    grown by, and in the end the whole of it. A sampler that cannot tell of growth tells of the
    whole alone.
    """

    request: SamplingRequest
    deliver: Callable[[SamplingResult], None]
    fail: Callable[[BaseException], None]
    session_id: str = ""
    watch: Callable[[int, Growth | Completion], None] | None = None
    num_started: int = 0
    completions: dict[int, Completion] = field(default_factory=dict)
    prompt_scores: PromptScores | None = None
    prefilled: Prefilled | None = None

    @property
    def num_left(self) -> int:
        """Samples that have not begun."""
        return self.request.num_samples - self.num_started

    @property
    def longest(self) -> int:
        """Tokens of a completion with its prompt, if nothing ends it early."""
        return len(self.request.prompt) + self.request.max_tokens

    def complete(self, sample: int, completion: Completion) -> None:
        """Keep a completion; with the last one deliver the result."""
        if self.watch is not None:
            self.watch(sample, completion)
        self.completions[sample] = completion
        if len(self.completions) == self.request.num_samples:
            assert self.prompt_scores is not None
            ordered = [self.completions[i] for i in range(self.request.num_samples)]
            self.deliver(SamplingResult(ordered, self.prompt_scores))


@dataclass(slots=True, eq=False)
class Row:
    """One running completion; its keys and values are in the slot of its index in the batch."""

    job: Job
    sample: int
    uniform: np.ndarray
    length: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[TopLogprobs] = field(default_factory=list)

    @staticmethod
    def of(job: Job, sample: int) -> "Row":
        """A completion that has no token yet. Its numbers in [0, 1), one a token, are a
        counter-based stream of its own: what else is in the batch has no say in them."""
        request = job.request
        key = np.array([request.seed % 2**64, sample], dtype=np.uint64)
        uniform = np.random.Generator(np.random.Philox(key=key)).random(request.max_tokens)
        return Row(job, sample, uniform, len(request.prompt))

    @property
    def next_uniform(self) -> float:
        """The number that decides the next token."""
        return float(self.uniform[len(self.tokens)])

    def append(self, choice: Choice, row: int, column: int) -> None:
        """Take the token that was drawn for this completion."""
        self.tokens.append(int(choice.tokens_nk[row, column]))
        self.logprobs.append(float(choice.logprobs_nk[row, column]))
        top = choice.top[row]
        if top is not None:
            self.top.append(top)
        if self.job.watch is not None:
            self.job.watch(self.sample, Growth(self.tokens[-1:], self.logprobs[-1:], top))

    def finish(self, reason: Literal["stop", "length"]) -> None:
        """Hand the completion to its request."""
        top = None
        if self.top:
            top = TopLogprobs(
                np.concatenate([part.token_ids for part in self.top]),
                np.concatenate([part.logprobs for part in self.top]),
            )
        self.job.complete(self.sample, Completion(self.tokens, self.logprobs, reason, top))
