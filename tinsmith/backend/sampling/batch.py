"""Continuous batching on one replica: rows join after a prefill and leave when they end."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinsmith.backend.base_model import BaseModel, backbone, unembed
from tinsmith.backend.forward import micro_batches, token_logprobs
from tinsmith.backend.sampling.choose import choose
from tinsmith.backend.sampling.keys_values import (
    LENGTH_STEP,
    PromptKeysValues,
    RunningKeysValues,
    round_up,
)
from tinsmith.backend.sampling.request import Completion, SamplingRequest, SamplingResult
from tinsmith.backend.sampling.stop import stop_reason


@dataclass(slots=True)
class Job:
    """A request under way, and who waits for its result."""

    request: SamplingRequest
    deliver: Callable[[SamplingResult], None]
    fail: Callable[[BaseException], None]
    completions: dict[int, Completion] = field(default_factory=dict)
    prompt_logprobs: np.ndarray | None = None


@dataclass(slots=True)
class Row:
    """One running completion; its keys and values are in the slot of its index in the batch."""

    job: Job
    sample: int
    uniform: np.ndarray
    length: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class SamplingBatch:
    """The requests on one snapshot. `step` prefills what fits, then decodes a token per row."""

    def __init__(
        self, base: BaseModel, replica: PreTrainedModel, token_budget: int, max_tokens_kept: int
    ) -> None:
        """`token_budget` bounds a prefill, `max_tokens_kept` rows x longest row of the cache."""
        self._base = base
        self._replica = replica
        self._token_budget = token_budget
        self._max_tokens_kept = max_tokens_kept
        self._waiting: deque[Job] = deque()
        self._admitting: list[Job] = []
        self._rows: list[Row] = []
        self._keys_values = RunningKeysValues(base.device)

    def add(self, job: Job) -> None:
        self._waiting.append(job)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._rows

    @torch.inference_mode()
    def step(self) -> int:
        """Go on by one token per running row; returns how many tokens were sampled."""
        sampled = self._admit()
        if self._rows:
            sampled += len(self._rows)
            self._decode()
        return sampled

    def fail_all(self, error: BaseException) -> None:
        """Give up everything under way, telling those who wait."""
        for job in {
            id(job): job
            for job in [*self._waiting, *self._admitting, *(row.job for row in self._rows)]
        }.values():
            job.fail(error)
        self._waiting.clear()
        self._admitting.clear()
        self._rows.clear()
        self._keys_values = RunningKeysValues(self._base.device)

    def _admit(self) -> int:
        jobs = self._admitting = self._take_what_fits()
        if not jobs:
            return 0
        lengths = [round_up(len(job.request.prompt), LENGTH_STEP) for job in jobs]
        for group in micro_batches(lengths, self._token_budget):
            self._prefill([jobs[i] for i in group])
        self._admitting = []
        return sum(job.request.num_samples for job in jobs)

    def _take_what_fits(self) -> list[Job]:
        """Waiting jobs, in order, while the cache would hold all rows at their longest."""
        rows = len(self._rows)
        longest = max((_longest(row.job.request) for row in self._rows), default=0)
        taken: list[Job] = []
        while self._waiting:
            request = self._waiting[0].request
            longest = max(longest, _longest(request))
            rows += request.num_samples
            if (taken or self._rows) and rows * longest > self._max_tokens_kept:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _prefill(self, jobs: Sequence[Job]) -> None:
        longest = round_up(max(len(job.request.prompt) for job in jobs), LENGTH_STEP)
        ids_BT = torch.zeros(len(jobs), longest, dtype=torch.long)
        for i, job in enumerate(jobs):
            ids_BT[i, : len(job.request.prompt)] = torch.tensor(job.request.prompt)
        prompt = PromptKeysValues()
        # Padding may reach past the context, where a model with learned positions has none.
        positions_T = torch.arange(longest).clamp(max=self._base.context_length - 1)
        hidden_BTD = self._hidden(ids_BT, positions_T[None], prompt)
        last_B = torch.tensor([len(job.request.prompt) - 1 for job in jobs])
        logits_BV = unembed(self._replica, hidden_BTD[torch.arange(len(jobs)), last_B])
        for i, job in enumerate(jobs):
            self._set_prompt_logprobs(job, hidden_BTD[i])
            self._start_rows(job, prompt, i, logits_BV[i])

    def _set_prompt_logprobs(self, job: Job, hidden_TD: Tensor) -> None:
        request = job.request
        if not request.wants_prompt_logprobs:
            return
        size = len(request.prompt)
        first = (
            1 if request.prompt_logprobs_last_n is None else size - request.prompt_logprobs_last_n
        )
        job.prompt_logprobs = np.full(size, np.nan, dtype=np.float32)
        if first < size:
            targets = torch.tensor(request.prompt[first:], device=hidden_TD.device)
            scored = token_logprobs(self._replica, hidden_TD[first - 1 : size - 1], targets)
            job.prompt_logprobs[first:] = scored.cpu().numpy()

    def _start_rows(self, job: Job, prompt: PromptKeysValues, row: int, logits_V: Tensor) -> None:
        """Choose the first token of each sample; those that go on get a slot each."""
        request = job.request
        new = [
            Row(job, sample, _uniform(request, sample), len(request.prompt))
            for sample in range(request.num_samples)
        ]
        running = self._extend(new, logits_V.expand(len(new), -1))
        if not running:
            return
        slots = list(range(len(self._rows), len(self._rows) + len(running)))
        self._keys_values.admit(slots, prompt, row, len(request.prompt))
        self._rows.extend(running)

    def _decode(self) -> None:
        positions_n1 = self._keys_values.begin_step([row.length for row in self._rows])
        ids_n1 = torch.tensor([[row.tokens[-1]] for row in self._rows])
        hidden_n1D = self._hidden(ids_n1, positions_n1, self._keys_values)
        logits_nV = unembed(self._replica, hidden_n1D[:, 0])
        for row in self._rows:
            row.length += 1
        self._keep(self._extend(self._rows, logits_nV))

    def _hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        keys_values: PromptKeysValues | RunningKeysValues,
    ) -> Tensor:
        output = backbone(self._replica)(
            input_ids=ids_BT.to(self._base.device),
            position_ids=positions_BT.to(self._base.device),
            past_key_values=keys_values,
            keys_values=keys_values,
            use_cache=True,
        )
        return output.last_hidden_state

    def _extend(self, rows: Sequence[Row], logits_nV: Tensor) -> list[Row]:
        """Add a token to each row; deliver those that end and return those that go on."""
        uniform_n = [float(row.uniform[len(row.tokens)]) for row in rows]
        tokens, logprobs = choose(logits_nV, [row.job.request for row in rows], uniform_n)
        running = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            reason = stop_reason(row.job.request, row.tokens, self._base.tokenizer.decode)
            if reason is None:
                running.append(row)
            else:
                row.job.completions[row.sample] = Completion(row.tokens, row.logprobs, reason)
                _deliver_if_complete(row.job)
        return running

    def _keep(self, running: list[Row]) -> None:
        """Drop ended rows; rows from the end move into the slots that they free."""
        if not running:
            self._keys_values = RunningKeysValues(self._base.device)  # gives the memory back
        if len(running) == len(self._rows):
            return
        kept = {id(row) for row in running}
        holes = [i for i, row in enumerate(self._rows[: len(running)]) if id(row) not in kept]
        movers = [i for i in range(len(running), len(self._rows)) if id(self._rows[i]) in kept]
        for hole, mover in zip(holes, movers, strict=True):
            self._keys_values.move(mover, hole, self._rows[mover].length)
            self._rows[hole] = self._rows[mover]
        del self._rows[len(running) :]


def _longest(request: SamplingRequest) -> int:
    return len(request.prompt) + request.max_tokens


def _uniform(request: SamplingRequest, sample: int) -> np.ndarray:
    """Numbers in [0, 1) for each token of a sample: a counter-based stream of its own, so that
    what else is in the batch has no say in them."""
    key = np.array([request.seed % 2**64, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(request.max_tokens)


def _deliver_if_complete(job: Job) -> None:
    if len(job.completions) == job.request.num_samples:
        ordered = [job.completions[sample] for sample in range(job.request.num_samples)]
        job.deliver(SamplingResult(ordered, job.prompt_logprobs))
