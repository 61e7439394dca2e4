"""The requests on one base model: who is in line, what its engine has, what became of it."""

import itertools
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.waiting import Waiting
from tinsmith.backend.vllm_sampler.holder import Holder
from tinsmith.backend.vllm_sampler.launch import MAX_SEQUENCES
from tinsmith.backend.vllm_sampler.messages import completion_of, prompt_scores_of, sample_order
from tinsmith.backend.vllm_sampler.residents import Resident
from tinsmith.errors import TinsmithError

# So much is with the engine; the rest is in a line where sessions take turns.
MAX_IN_FLIGHT = 2 * MAX_SEQUENCES
# What a busy snapshot gets before it makes way for one that waits, where only one fits.
TURN_S = 2.0


@dataclass(slots=True, eq=False)
class Flight:
    """Samples of a request that the engine has."""

    job: Job
    snapshot_id: str
    samples: list[int]


class Line:
    """One engine and what is asked of it. The server's own engine thread alone calls it, but for
    the counts."""

    def __init__(self, holder: Holder, restart_every: int = 0) -> None:
        """`restart_every` is how many adapters an engine is given before a new one takes its
        place; 0: as many as come."""
        self._holder = holder
        self._restart_every = restart_every
        self._ids = itertools.count(1)
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._lost: list[Flight] = []  # with an engine that ended; they go first
        self._flights: dict[int, Flight] = {}
        self._turn_began_s = 0.0
        self._sampled = 0

    def start(self) -> None:
        """Start the engine and check that it computes the base model as the trainer does."""
        self._holder.start()

    def stop(self) -> None:
        self._holder.stop()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do until the engine says something or more is asked."""
        is_asked = bool(self._lost or self._waiting)
        return not self._holder.has_events and (self._holder.is_up or not is_asked)

    @property
    def holder(self) -> Holder:
        """The engine's process and the weights in it."""
        return self._holder

    @property
    def merges(self) -> bool:
        """Whether the engine has the weights of one snapshot at a time, merged into its own."""
        return self._holder.launch.merges

    @property
    def sleeps(self) -> bool:
        """Whether the engine gives up its memory while the trainer's model computes."""
        return self._holder.launch.sleeps

    @property
    def num_waiting(self) -> int:
        return sum(len(line) for line in list(self._waiting.values()))

    @property
    def num_running(self) -> int:
        return sum(len(flight.samples) for flight in list(self._flights.values()))

    def add(self, snapshot_id: str, job: Job) -> None:
        limit = self._holder.launch.engine["max_model_len"]
        if job.longest > limit:
            size, max_tokens = len(job.request.prompt), job.request.max_tokens
            job.fail(
                TinsmithError(
                    f"prompt and max_tokens must fit vllm_max_model_len of {limit} tokens, got "
                    f"{size} + {max_tokens}; shorten one of them, or start the server with more"
                )
            )
            return
        self._waiting.setdefault(snapshot_id, Waiting()).add(job)
        self._admit()

    def step(self) -> int:
        """Take in what the engine said and send what it has room for; returns the number of
        tokens that were sampled."""
        for event in self._holder.take():
            self._handle(event)
        self._admit()
        sampled, self._sampled = self._sampled, 0
        return sampled

    def cancel(self, job: Job) -> None:
        for snapshot_id, line in list(self._waiting.items()):
            line.remove(job)
            if not line:
                del self._waiting[snapshot_id]
        self._lost = [flight for flight in self._lost if flight.job is not job]
        for order_id in [key for key, flight in self._flights.items() if flight.job is job]:
            self._take_back(order_id)

    def replace(self, snapshot_id: str) -> None:
        """Let what is under way on a snapshot go on with its new weights; without any, the engine
        is given them when they are asked for."""
        if any(flight.snapshot_id == snapshot_id for flight in self._flights.values()):
            self._holder.install(snapshot_id, in_use=())
        else:
            self._holder.unload(snapshot_id)

    def forget(self, snapshot_id: str, error: BaseException) -> None:
        """Unload a snapshot and fail what is asked of it."""
        jobs = list(self._waiting.pop(snapshot_id, ()))
        jobs += [flight.job for flight in self._lost if flight.snapshot_id == snapshot_id]
        self._lost = [flight for flight in self._lost if flight.snapshot_id != snapshot_id]
        for order_id in [k for k, f in self._flights.items() if f.snapshot_id == snapshot_id]:
            jobs.append(self._take_back(order_id).job)
        self._holder.unload(snapshot_id)
        for job in dict.fromkeys(jobs):
            job.fail(error)

    def fail_all(self, error: BaseException) -> None:
        flights = [*self._lost, *self._flights.values()]
        for snapshot_id in {*self._waiting, *(flight.snapshot_id for flight in flights)}:
            self.forget(snapshot_id, error)

    def rest(self) -> None:
        """Finish what the engine is at, and let it give up its memory until there is more."""
        if self.sleeps:
            while (self._flights or self._holder.is_probing) and self._holder.is_ready:
                self._handle(self._holder.wait())
            self._holder.sleep()

    def _admit(self) -> None:
        if self._lost or self._waiting:
            self._holder.wake()
        turns = self._turns()
        if self._holder.is_ready and not self._is_making_way(turns):
            for snapshot_id in turns:
                if self._swaps_left > 0 or snapshot_id in self._holder.residents:
                    self._serve(snapshot_id)
                if not self._holder.is_ready:  # started again, for adapters of a higher rank
                    break
        self._holder.expect_answers(bool(self._flights))

    def _turns(self) -> list[str]:
        """The snapshots whose requests may be sent: all, or where only one fits, that whose turn
        it is; another one's comes when what was sent has ended."""
        asked = list(dict.fromkeys([*(f.snapshot_id for f in self._lost), *self._waiting]))
        current = self._holder.residents.current
        if current is None:
            return asked[:1] if self.merges else asked
        others = [snapshot_id for snapshot_id in asked if snapshot_id != current]
        is_over = time.monotonic() - self._turn_began_s > TURN_S
        if current in asked and not (others and is_over):
            return [current]
        return [] if self._flights else others[:1]

    def _serve(self, snapshot_id: str) -> None:
        try:
            resident = self._holder.residents.get(snapshot_id)
            if resident is None:
                self._turn_began_s = time.monotonic()
                in_use = {flight.snapshot_id for flight in self._flights.values()}
                resident = self._holder.install(snapshot_id, in_use)
        except Exception as error:  # belongs to the requests on this snapshot alone
            self.forget(snapshot_id, error)
            return
        if resident is not None and resident.is_verified:
            self._send_all(snapshot_id, resident)

    def _send_all(self, snapshot_id: str, resident: Resident) -> None:
        for flight in [flight for flight in self._lost if flight.snapshot_id == snapshot_id]:
            self._lost.remove(flight)
            self._send(flight, resident)
        line = self._waiting.get(snapshot_id)
        while line and (room := MAX_IN_FLIGHT - self.num_running) > 0:
            job = line.first()
            start = job.num_started
            job.num_started += min(job.num_left, room)
            self._send(Flight(job, snapshot_id, list(range(start, job.num_started))), resident)
            if not job.num_left:
                line.pop_first()
        if line is not None and not line:
            del self._waiting[snapshot_id]

    def _send(self, flight: Flight, resident: Resident) -> None:
        order_id = next(self._ids)
        self._flights[order_id] = flight
        self._holder.say(sample_order(order_id, resident, flight.job.request, flight.samples))

    def _take_back(self, order_id: int) -> Flight:
        self._holder.say({"do": "cancel", "id": order_id})
        return self._flights.pop(order_id)

    @property
    def _swaps_left(self) -> float:
        """How many weights the engine may still take."""
        return (self._restart_every or math.inf) - self._holder.num_swaps

    def _is_making_way(self, turns: list[str]) -> bool:
        """Whether the engine took as many weights as it may and others are the next in line: then
        it ends what it is at, and a new one follows."""
        if not turns or self._swaps_left > 0:
            return False
        # Below 0 with weights that were replaced while completions ran on them.
        if self._swaps_left == 0 and turns[0] in self._holder.residents:
            return False
        if not self._flights:
            self._holder.restart()
        return True

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "finished" and event["id"] in self._flights:
            self._on_finished(event)
        elif kind == "failed" and (flight := self._flights.pop(event["id"], None)) is not None:
            self.cancel(flight.job)
            flight.job.fail(TinsmithError(f"vLLM refuses the request: {event['message']}"))
        elif kind == "died":
            self._lost += self._flights.values()
            self._flights.clear()
            if (error := self._holder.on_death(event, len(self._lost))) is not None:
                self.fail_all(error)
        elif (refusal := self._holder.on_event(event)) is not None:
            self.forget(*refusal)

    def _on_finished(self, answer: dict[str, Any]) -> None:
        flight, sample = self._flights[answer["id"]], answer["sample"]
        flight.samples.remove(sample)
        if not flight.samples:
            del self._flights[answer["id"]]
        self._holder.note_answer()
        self._sampled += len(answer["tokens"])
        job = flight.job
        try:
            if sample == 0:
                job.prompt_scores = prompt_scores_of(job.request, answer)
            job.complete(sample, completion_of(answer))
        except TinsmithError as error:
            self.cancel(job)
            job.fail(error)
