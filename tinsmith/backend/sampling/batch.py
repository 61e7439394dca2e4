"""Continuous batching on one replica: rows join after a prefill and leave when they end."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import BaseModel, unembed
from tinsmith.backend.sampling.choose import choose
from tinsmith.backend.sampling.decode_steps import DecodeSteps, Recording, hidden_states
from tinsmith.backend.sampling.job import Job, Prefilled, Row
from tinsmith.backend.sampling.keys_values import RunningKeysValues
from tinsmith.backend.sampling.prompt_keys_values import PromptKeysValues
from tinsmith.backend.sampling.prompt_scores import score_prompt
from tinsmith.backend.sampling.stop import stop_reason
from tinsmith.backend.sampling.waiting import Waiting

# Elements of one block of logits; drawing from it takes some six times its memory, unless that is
# compiled. On a CPU larger blocks than the trainer's: each reads the whole unembedding again.
MAX_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 26}
# Prefills of a full token budget before the running rows get their next token.
MAX_PREFILLS = 4


class SamplingBatch:
    """The requests on one snapshot. `step` prefills what fits, then decodes a token per row."""

    def __init__(
        self,
        base: BaseModel,
        replica: PreTrainedModel,
        token_budget: int,
        max_tokens_kept: int,
        block_rows: int | None = None,
        recording: Recording | None = None,
    ) -> None:
        """`token_budget` bounds a prefill, `max_tokens_kept` rows x longest row of the cache, and
        `block_rows` the rows whose logits exist at a time. Decode steps are recorded where there
        is a `recording`."""
        self._base = base
        self._replica = replica
        self._token_budget = token_budget
        self._max_tokens_kept = max_tokens_kept
        self._block_rows = block_rows or max(
            1, MAX_LOGITS[base.device.type] // base.vocabulary_size
        )
        self._waiting = Waiting()
        self._admitting: list[tuple[Job, int]] = []
        self._rows: list[Row] = []
        self._steps = DecodeSteps(recording)
        self._empty()

    def add(self, job: Job) -> None:
        self._waiting.add(job)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._rows

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def step(self) -> int:
        """Go on by one token per running row; returns how many tokens were sampled."""
        sampled = self._admit()
        if self._rows:
            sampled += len(self._rows)
            self._decode()
        return sampled

    @torch.inference_mode()
    def cancel(self, job: Job) -> None:
        """Forget a request; its rows leave at once, and nobody is told."""
        self._waiting.remove(job)
        self._keep([row for row in self._rows if row.job is not job])

    def take_back(self) -> list[Job]:
        """Give up the requests that have not begun, to be added elsewhere or later."""
        jobs = list(self._waiting)
        self._waiting = Waiting(job for job in jobs if job.num_started)
        return [job for job in jobs if not job.num_started]

    def replace(self, replica: PreTrainedModel) -> None:
        """Go on with other weights. Running rows keep the keys and values that they have."""
        self._replica = replica
        self._steps.begin(replica, self._keys_values)
        for job in self._waiting:
            job.prefilled = None

    def fail_all(self, error: BaseException) -> None:
        """Give up everything under way, telling those who wait."""
        admitting = (job for job, _ in self._admitting)
        running = (row.job for row in self._rows)
        for job in dict.fromkeys([*self._waiting, *admitting, *running]):
            job.fail(error)
        self._waiting.clear()
        self._admitting.clear()
        self._rows.clear()
        self._empty()

    def _empty(self) -> None:
        """Give the memory of keys, values and recorded steps back."""
        self._keys_values = RunningKeysValues(self._base.device, self._max_tokens_kept)
        self._steps.begin(self._replica, self._keys_values)

    def _admit(self) -> int:
        portions = self._admitting = self._take_what_fits()
        known = [portion for portion in portions if portion[0].prefilled is not None]
        new = [portion for portion in portions if portion[0].prefilled is None]
        # Rows of one length side by side are attended together.
        new.sort(key=lambda portion: len(portion[0].request.prompt), reverse=True)
        for job, count in known:
            self._start_rows(job, count)
        for group in self._within_budget(new):
            self._prefill([job for job, _ in group])
            for job, count in group:
                self._start_rows(job, count)
        self._admitting = []
        return sum(count for _, count in portions)

    def _within_budget(
        self, portions: Sequence[tuple[Job, int]]
    ) -> Iterator[list[tuple[Job, int]]]:
        """What goes through the model together: a longer prompt than the budget goes alone."""
        together: list[tuple[Job, int]] = []
        num_tokens = 0
        for portion in portions:
            length = len(portion[0].request.prompt)
            if together and num_tokens + length > self._token_budget:
                yield together
                together, num_tokens = [], 0
            together.append(portion)
            num_tokens += length
        if together:
            yield together

    def _take_what_fits(self) -> list[tuple[Job, int]]:
        """Waiting jobs, and how many samples of each, while the cache would hold all rows
        at their longest. The last one may get a part of its samples; the others wait in line."""
        rows = len(self._rows)
        longest = max((row.job.longest for row in self._rows), default=0)
        prefill = 0
        taken: list[tuple[Job, int]] = []
        while self._waiting:
            job = self._waiting.first()
            longest = max(longest, job.longest)
            room = self._max_tokens_kept // longest - rows
            if job.prefilled is None:
                prefill += len(job.request.prompt)
            if taken and prefill > MAX_PREFILLS * self._token_budget:
                break
            count = min(job.num_left, room if rows else max(room, 1))
            if count < 1:
                break
            taken.append((job, count))
            rows += count
            if count < job.num_left:
                break
            self._waiting.pop_first()
        return taken

    def _prefill(self, jobs: Sequence[Job]) -> None:
        """Prompts one behind the other; each is computed as it would be alone."""
        lengths = [len(job.request.prompt) for job in jobs]
        ids_1N = torch.tensor([[token for job in jobs for token in job.request.prompt]])
        positions_1N = torch.cat([torch.arange(length) for length in lengths])[None]
        prompt = PromptKeysValues(lengths, self._base.device)
        ids_1N, positions_1N = (t.to(self._base.device) for t in (ids_1N, positions_1N))
        hidden_ND = hidden_states(self._replica, ids_1N, positions_1N, prompt)[0]
        last_B = torch.tensor([own.stop - 1 for own in prompt.prompts])
        logits_BV = unembed(self._replica, hidden_ND[last_B])
        for i, (job, own) in enumerate(zip(jobs, prompt.prompts, strict=True)):
            job.prefilled = Prefilled(logits_BV[i], prompt, i)
            if job.prompt_scores is None:
                job.prompt_scores = score_prompt(
                    self._replica, hidden_ND[own], job.request, self._block_rows
                )

    def _start_rows(self, job: Job, count: int) -> None:
        """Choose the first token of the next samples; those that go on get a slot each."""
        prefilled = job.prefilled
        assert prefilled is not None
        rows = [Row.of(job, job.num_started + i) for i in range(count)]
        job.num_started += count
        uniform_1k = np.array([[row.next_uniform for row in rows]])
        choice = choose(prefilled.logits_V[None], [job.request], uniform_1k)
        for column, row in enumerate(rows):
            row.append(choice, 0, column)
        running = self._going_on(rows)
        if running:
            slots = list(range(len(self._rows), len(self._rows) + len(running)))
            length = len(job.request.prompt)
            self._keys_values.admit(slots, prefilled.keys_values, prefilled.row, length)
            self._rows.extend(running)
        job.prefilled = prefilled.alone() if job.num_left else None

    def _decode(self) -> None:
        hidden_nD = self._steps.hidden(
            [row.tokens[-1] for row in self._rows], [row.length for row in self._rows]
        )
        for start in range(0, len(self._rows), self._block_rows):
            rows = self._rows[start : start + self._block_rows]
            logits_nV = unembed(self._replica, hidden_nD[start : start + len(rows)])
            uniform_n1 = np.array([[row.next_uniform] for row in rows])
            choice = choose(logits_nV, [row.job.request for row in rows], uniform_n1)
            for i, row in enumerate(rows):
                row.length += 1
                row.append(choice, i, 0)
        self._keep(self._going_on(self._rows))

    def _going_on(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that want another token; those that ended are handed in."""
        running = []
        for row in rows:
            reason = stop_reason(row.job.request, row.tokens, self._base.tokenizer.decode)
            if reason is None:
                running.append(row)
            else:
                row.finish(reason)
        return running

    def _keep(self, running: list[Row]) -> None:
        """Drop ended rows; rows from the end move into the slots that they free."""
        if not running:
            self._empty()
        if len(running) == len(self._rows):
            return
        kept = {id(row) for row in running}
        holes = [i for i, row in enumerate(self._rows[: len(running)]) if id(row) not in kept]
        movers = [i for i in range(len(running), len(self._rows)) if id(self._rows[i]) in kept]
        for hole, mover in zip(holes, movers, strict=True):
            self._keys_values.move(mover, hole, self._rows[mover].length)
            self._rows[hole] = self._rows[mover]
        del self._rows[len(running) :]
