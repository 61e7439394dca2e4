"""Sampling the batches of coming steps while this one is trained, within a bounded staleness."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import tinker

from tinsmith import config
from tinsmith.stages.policy import Batch

Collect = Callable[[tinker.SamplingClient, int], Batch]


class BatchesAhead:
    """The batch of step k is sampled by the policy of step k - s, s = `max_staleness`, or by the
    first there is: which one is a function of k alone, never of how fast anything ran."""

    def __init__(
        self, collect: Collect, first_step: int, options: config.Grpo, pool: ThreadPoolExecutor
    ) -> None:
        self._collect = collect
        self._next_step = first_step
        self._num_steps = options.steps
        self._staleness = options.max_staleness
        self._pool = pool
        self._pending: deque[Future[Batch]] = deque()

    def next(self, newest: tinker.SamplingClient) -> Batch:
        """The batch of the next step, given a client of the policy as it is at that step; those
        that this policy is to sample are begun."""
        while len(self._pending) <= self._staleness and self._next_step < self._num_steps:
            self._pending.append(self._pool.submit(self._collect, newest, self._next_step))
            self._next_step += 1
        return self._pending.popleft().result()


@contextmanager
def batches_ahead(
    collect: Collect, first_step: int, options: config.Grpo
) -> Iterator[BatchesAhead]:
    """One batch is sampled at a time; when the block ends, those not begun are dropped."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="sampling")
    try:
        yield BatchesAhead(collect, first_step, options, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
