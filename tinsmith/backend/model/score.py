"""Whole requests as micro-batches that fit into memory; one that does not is halved."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from tinsmith.backend.model.activations import is_out_of_memory, peak_bytes, recomputed_layers
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import (
    Scored,
    has_gradient,
    micro_batches,
    packs_all,
    score_batch,
)
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.merged import can_merge, enter_merged, merged_bytes, pays_to_merge
from tinsmith.backend.model.packed_attention import num_scores
from tinsmith.backend.model.sharding import ShardedLayers
from tinsmith.backend.model.shared_prompts import (
    Group,
    find_groups,
    num_tokens,
    pack,
    packed_batches,
)
from tinsmith.errors import TinsmithError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """What all micro-batches of a request share; `places` are the data's in the request."""

    module: PreTrainedModel
    parameters: list[nn.Parameter]
    data: Sequence[Datum]
    choice: LossChoice
    places: Sequence[int]
    forward_only: bool
    shards: ShardedLayers | None
    memory_bytes: int | None

    def size(self, rows: Sequence[int]) -> int:
        """Tokens that go through the model for a micro-batch, any padding included."""
        tokens = [self.data[row].tokens for row in rows]
        return _size(self.module, tokens, find_groups(tokens, packs_all(self.module)))


def score(
    module: PreTrainedModel,
    data: Sequence[Datum],
    choice: LossChoice,
    token_budget: int,
    forward_only: bool,
    places: Sequence[int] | None = None,
    min_micro_batches: int = 1,
    shards: ShardedLayers | None = None,
    memory_bytes: int | None = None,
) -> Scored:
    """Run the loss over `data`; unless `forward_only`, add its gradient to the adapter's.

    The data go through in micro-batches of at most `token_budget` tokens, with any padding, and in
    at least `min_micro_batches` of them as far as there are sequences; the loss is a sum over
    tokens, so how they are cut changes its gradient by rounding alone. `places` says where in the
    client's request each datum stood, if `data` is a part of it.

    A micro-batch whose activations would take more than `memory_bytes` computes its layers twice.
    One that does not fit into memory is halved, and halved again, down to one sequence, and so are
    the others; a sequence that does not fit alone computes its layers twice, and so do all that are
    predicted to take more than half of its memory. What is left of the two budgets is among the
    results. An error leaves part of the gradient behind. Where it pays, and `memory_bytes` hold
    that as well, adapters are merged into weights of the request's own, which go before a budget
    does.

    With `shards` all ranks score at the same time, each its own data, if it has any.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    places = places or range(len(data))
    job = _Job(module, parameters, data, choice, places, forward_only, shards, memory_bytes)
    try:
        with torch.set_grad_enabled(not forward_only), ExitStack() as merging:
            plan = _plan(job, token_budget, min_micro_batches)
            is_merged = _should_merge(job, plan) and enter_merged(module, not forward_only, merging)
            return _score_all(job, plan, merging if is_merged else None)
    finally:
        if shards is not None:
            shards.attend(forward_only)


def _score_all(job: _Job, plan: list[list[int]], merging: ExitStack | None) -> Scored:
    logprobs: list[np.ndarray] = [np.empty(0)] * len(job.data)
    total, left, left_bytes = 0.0, None, None
    queue = plan[::-1]
    while queue:
        rows = queue.pop()
        if left is not None and len(rows) > 1 and job.size(rows) > left:
            queue += _halves(rows)
            continue
        batch = [job.data[row] for row in rows]
        scored = _score_if_it_fits(job, batch)
        if scored is None and merging is not None:
            merging.close()
            merging = None
            queue.append(rows)
            continue
        if scored is None and len(rows) == 1 and _may_recompute(job, batch):
            left_bytes = _halved_memory(job, batch)
            job = replace(job, memory_bytes=left_bytes)
            queue.append(rows)
            continue
        if scored is None:
            left = _halved_budget(job, rows)
            queue += _halves(rows)
            continue
        total += scored.loss
        for row, part in zip(rows, scored.logprobs, strict=True):
            logprobs[row] = part
    return Scored(total, logprobs, left, left_bytes)


def _should_merge(job: _Job, plan: Sequence[Sequence[int]]) -> bool:
    """Not where that would have layers computed twice."""
    if job.shards is not None or not can_merge(job.module):
        return False
    if not pays_to_merge(job.module, sum(map(job.size, plan))):
        return False
    if job.memory_bytes is None:
        return True
    most = max(_peak_bytes(job, [job.data[row] for row in rows]) for rows in plan)
    return most + merged_bytes(job.module, not job.forward_only) <= job.memory_bytes


def _plan(job: _Job, token_budget: int, min_micro_batches: int) -> list[list[int]]:
    """The rows of each micro-batch; where the budget makes too few, the fullest are halved."""
    plan = list(_cut_by_budget(job, token_budget))
    while len(plan) < min(min_micro_batches, len(job.data)):
        largest = max(range(len(plan)), key=lambda i: len(plan[i]))
        rows, middle = plan[largest], (len(plan[largest]) + 1) // 2
        plan[largest : largest + 1] = [rows[:middle], rows[middle:]]
    return plan


def _cut_by_budget(job: _Job, token_budget: int) -> Iterator[list[int]]:
    """Micro-batches of rows that agree in the number of targets for each token, and in whether they
    have a gradient: those without keep no graph, and come last."""

    def kind(row: int) -> tuple[bool, tuple[int, ...]]:
        return not has_gradient(data[row], job.choice), data[row].target_tokens.shape[1:]

    data = job.data
    for _, group in groupby(sorted(range(len(data)), key=kind), key=kind):
        rows = list(group)
        tokens = [data[row].tokens for row in rows]
        packed = list(packed_batches(tokens, token_budget, packs_all(job.module)))
        yield from ([rows[i] for i in batch] for batch in packed)
        shared = {i for batch in packed for i in batch}
        alone = [i for i in range(len(rows)) if i not in shared]
        for batch in micro_batches([len(tokens[i]) for i in alone], token_budget):
            yield [rows[alone[i]] for i in batch]


def _score_if_it_fits(job: _Job, batch: Sequence[Datum]) -> Scored | None:
    """Score a batch; None, and the gradient as it was, if that takes more memory than there is.

    What is accumulated is held aside: a batch that fails half way has added part of its own.
    """
    accumulated = [parameter.grad for parameter in job.parameters]
    _drop_gradient(job)
    recomputing = recomputed_layers(job.module) if _should_recompute(job, batch) else nullcontext()
    with nullcontext() if job.shards is None else job.shards.computing(job.forward_only):
        try:
            with recomputing:
                scored = score_batch(job.module, batch, job.choice)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            scored = None
        # Outside of `except`: the error holds on to the frames that hold the memory.
        if scored is None:
            _drop_gradient(job)
            if job.module.device.type == "cuda":
                torch.cuda.empty_cache()
    for parameter, before in zip(job.parameters, accumulated, strict=True):
        if before is not None:
            parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
    return scored


def _should_recompute(job: _Job, batch: Sequence[Datum]) -> bool:
    if job.memory_bytes is None or not _has_graph(job, batch):
        return False
    return _peak_bytes(job, batch) > job.memory_bytes


def _may_recompute(job: _Job, batch: Sequence[Datum]) -> bool:
    """Whether computing a batch's layers twice, which it did not, would take less memory."""
    return _has_graph(job, batch) and not _should_recompute(job, batch)


def _has_graph(job: _Job, batch: Sequence[Datum]) -> bool:
    """Whether a batch holds what its layers computed for a backward pass."""
    return not job.forward_only and any(has_gradient(datum, job.choice) for datum in batch)


def _peak_bytes(job: _Job, batch: Sequence[Datum]) -> int:
    """What a batch is predicted to take if its layers are computed once."""
    tokens = [datum.tokens for datum in batch]
    groups = find_groups(tokens, packs_all(job.module))
    return peak_bytes(
        job.module,
        _size(job.module, tokens, groups),
        recomputes=False,
        num_repeated=sum(len(one.rows) * one.size for one in groups),
        num_scores=sum(num_scores(part) for part in pack(tokens, groups).parts),
    )


def _size(module: PreTrainedModel, tokens: Sequence[np.ndarray], groups: Sequence[Group]) -> int:
    if packs_all(module) or any(group.size for group in groups):
        return sum(num_tokens(group, tokens) for group in groups)
    return len(tokens) * max(map(len, tokens))


def _drop_gradient(job: _Job) -> None:
    for parameter in job.parameters:
        parameter.grad = None


def _halves(rows: list[int]) -> list[list[int]]:
    """The two halves of a micro-batch, the second first."""
    middle = (len(rows) + 1) // 2
    return [rows[middle:], rows[:middle]]


def _halved_memory(job: _Job, batch: Sequence[Datum]) -> int:
    """Half of what a sequence that did not fit was predicted to take, and a word about it."""
    left_bytes = _peak_bytes(job, batch) // 2
    log.warning(
        "a sequence of %d tokens did not fit into memory: this model goes on with layers computed "
        "twice where activations are predicted to take more than %.3g GB (--activation-memory-gb)",
        len(batch[0].tokens),
        left_bytes / 1e9,
    )
    return left_bytes


def _halved_budget(job: _Job, rows: list[int]) -> int:
    """Half of what did not fit, and a word about it; refused if it is one sequence."""
    longest = len(job.data[rows[0]].tokens)
    if len(rows) == 1:
        fitting = _longest_suffix(job, job.data[rows[0]])
        raise TinsmithError(
            f"data[{job.places[rows[0]]}]: the sequence of {longest} tokens does not fit into the "
            f"memory that is free on {job.module.device}, even alone; when tried, its last "
            f"{fitting} tokens did: shorten it to about that, or train on fewer layers or at a "
            "lower rank; nothing was accumulated"
        )
    size = job.size(rows)
    log.warning(
        "%d sequences of up to %d tokens did not fit into memory together and are split; this "
        "model goes on with a token budget of %d, and a --token-budget below %d saves the failed "
        "attempts",
        len(rows),
        longest,
        size // 2,
        size,
    )
    return size // 2


def _longest_suffix(job: _Job, datum: Datum) -> int:
    """How many of a sequence's last tokens fit, found by trying, to an eighth of its length; the
    trials leave their gradient behind. The last: a prompt alone has no backward pass."""
    job = replace(job, memory_bytes=0)
    fitting, failing = 0, len(datum.tokens)
    while failing - fitting > (max(1, len(datum.tokens) // 8) if fitting else 1):
        middle = (fitting + failing) // 2
        if _score_if_it_fits(job, [datum.suffix(middle)]) is None:
            failing = middle
        else:
            fitting = middle
    return fitting
