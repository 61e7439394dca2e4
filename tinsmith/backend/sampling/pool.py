"""The batches that run on snapshots, and the snapshots that wait for one."""

from collections import OrderedDict
from collections.abc import Callable

from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.decode_steps import Recording, recording_of
from tinsmith.backend.sampling.interface import Sampling
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.memory import max_tokens_kept
from tinsmith.backend.sampling.replica import make_replica
from tinsmith.backend.sampling.snapshots import Snapshots
from tinsmith.backend.sampling.waiting import Waiting
from tinsmith.errors import TinsmithError

# A replica holds merged weights, or a module tree on shared ones, and its batch up to a quarter of
# the memory that is free.
MAX_REPLICAS = 3
# What a busy snapshot gets before it makes way for one that waits: making a replica has its price.
MIN_STEPS = 64


class SamplerPool(Sampling):
    """Batches by snapshot; those with work take turns, a token per row each.

    Where more snapshots have work than there are replicas, the one that ran for longest takes no
    new requests, ends those that it has begun and goes to the end of the line.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        token_budget: int,
        min_steps: int = MIN_STEPS,
        records_steps: bool = True,
    ) -> None:
        """Where there is a GPU, decode steps are recorded, unless `records_steps` is false."""
        self.snapshots = snapshots
        self._token_budget = token_budget
        self._min_steps = min_steps
        self._records_steps = records_steps
        self._recordings: dict[str, Recording | None] = {}  # by base model
        self._batches: OrderedDict[str, SamplingBatch] = OrderedDict()  # used last at the end
        self._num_steps: dict[str, int] = {}
        self._queues: OrderedDict[str, Waiting] = OrderedDict()
        self._leaving: str | None = None

    @property
    def is_idle(self) -> bool:
        return not self._queues and all(batch.is_idle for batch in self._batches.values())

    @property
    def num_waiting(self) -> int:
        """Sample requests that no step has taken up yet; may be read from any thread."""
        in_line = sum(len(queue) for queue in list(self._queues.values()))
        return in_line + sum(batch.num_waiting for batch in list(self._batches.values()))

    @property
    def num_running(self) -> int:
        """Completions that are under way; may be read from any thread."""
        return sum(batch.num_running for batch in list(self._batches.values()))

    def add(self, snapshot_id: str, job: Job) -> None:
        """Queue a request on a snapshot; a batch that it needs is made in the next step, before
        which others may have given up their memory."""
        self.snapshots.touch(snapshot_id)
        if snapshot_id in self._batches and snapshot_id != self._leaving:
            self._batches.move_to_end(snapshot_id)
            self._batches[snapshot_id].add(job)
        else:
            self._queues.setdefault(snapshot_id, Waiting()).add(job)

    def step(self) -> int:
        """One step of every batch that has work; an error fails that batch's requests.

        Returns how many tokens were sampled.
        """
        self._open_waiting()
        sampled = 0
        for snapshot_id, batch in self._batches.items():
            if batch.is_idle:
                continue
            self._num_steps[snapshot_id] += 1
            try:
                sampled += batch.step()
            except Exception as error:  # the requests of one batch must not take the server down
                batch.fail_all(error)
        self._take_turns()
        return sampled

    def cancel(self, job: Job) -> None:
        """Forget a request, wherever it is."""
        for batch in self._batches.values():
            batch.cancel(job)
        for snapshot_id, queue in list(self._queues.items()):
            queue.remove(job)
            if not queue:
                del self._queues[snapshot_id]

    def replace(self, snapshot_id: str) -> None:
        """Let a running batch go on with the weights that its snapshot has now."""
        if batch := self._batches.get(snapshot_id):
            batch.replace(make_replica(*self.snapshots.get(snapshot_id)))

    def forget(self, snapshot_id: str) -> None:
        """Drop a snapshot whose client is gone."""
        error = TinsmithError("the weights of this sampling client were dropped")
        if batch := self._close(snapshot_id):
            batch.fail_all(error)
        for job in self._queues.pop(snapshot_id, ()):
            job.fail(error)
        self.snapshots.remove(snapshot_id)

    def check_adapter(self, base: BaseModel, settings: LoraSettings) -> None:
        """Whatever is trained here can be sampled from here."""

    def make_room(self) -> None:
        """Batches keep what they have: it was sized to leave the trainer its part."""

    def listen(self, on_change: Callable[[], None]) -> None:
        """Nothing changes but on the engine's thread."""

    def _open_waiting(self) -> None:
        """Give replicas to the snapshots in line, as far as there are any."""
        for snapshot_id in list(self._queues):
            if snapshot_id in self._batches:
                continue
            idle = [key for key, batch in self._batches.items() if batch.is_idle]
            if len(self._batches) >= MAX_REPLICAS:
                if not idle:
                    return
                self._close(idle[0])
            self._open(snapshot_id, self._queues.pop(snapshot_id))

    def _open(self, snapshot_id: str, waiting: Waiting) -> None:
        try:
            base, weights = self.snapshots.get(snapshot_id)
            replica = make_replica(base, weights)
        except Exception as error:  # belongs to the requests on this snapshot alone
            for job in waiting:
                job.fail(error)
            return
        if self._records_steps and base.name not in self._recordings:
            self._recordings[base.name] = recording_of(base)
        batch = SamplingBatch(
            base,
            replica,
            self._token_budget,
            max_tokens_kept(base),
            recording=self._recordings.get(base.name),
        )
        for job in waiting:
            batch.add(job)
        self._batches[snapshot_id], self._num_steps[snapshot_id] = batch, 0

    def _close(self, snapshot_id: str) -> SamplingBatch | None:
        self._num_steps.pop(snapshot_id, None)
        if self._leaving == snapshot_id:
            self._leaving = None
        return self._batches.pop(snapshot_id, None)

    def _take_turns(self) -> None:
        if self._leaving is not None:
            if self._batches[self._leaving].is_idle:
                self._close(self._leaving)
            elif self._queues.keys() <= {self._leaving}:  # nobody else is in line any more
                for job in self._queues.pop(self._leaving, ()):
                    self._batches[self._leaving].add(job)
                self._leaving = None
        self._open_waiting()
        if self._queues and self._leaving is None:
            longest = max(self._batches, key=self._num_steps.__getitem__)
            if self._num_steps[longest] >= self._min_steps:
                self._leaving = longest
                if back := self._batches[longest].take_back():
                    self._queues[longest] = Waiting(back)
