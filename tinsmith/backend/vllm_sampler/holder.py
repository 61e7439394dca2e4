"""An engine's process and the weights in it: started, swapped, verified, started again."""

import itertools
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.snapshots import Snapshots
from tinsmith.backend.vllm_sampler.launch import Launch, advice
from tinsmith.backend.vllm_sampler.messages import sample_order, top_of
from tinsmith.backend.vllm_sampler.probe import check_probe, expected_logprobs, probe_request
from tinsmith.backend.vllm_sampler.process import VllmProcess
from tinsmith.backend.vllm_sampler.residents import Resident, Residents
from tinsmith.errors import TinsmithError

# Of engines that answered nothing in between; then their requests are given up.
MAX_DEATHS = 3
Refusal = tuple[str, TinsmithError]  # the snapshot whose weights cannot be sampled from, and why
log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Probe:
    """What decides whether weights may be sampled from: the log-probabilities [V] that a token
    after the probe's prompt has by the trainer's model."""

    snapshot_id: str
    salt: str
    expected_V: np.ndarray


class Holder:
    """Holds an engine, and in it the weights of snapshots; none is used before it is verified."""

    def __init__(
        self,
        base: BaseModel,
        launch: Launch,
        snapshots: Snapshots,
        scratch: Path,
        on_event: Callable[[], None],
    ) -> None:
        """`scratch` is a folder for adapters on their way to the engine."""
        self._base = base
        self.launch = launch  # as the engine that runs was started, or the next will be
        self._snapshots = snapshots
        self._on_event = on_event
        self.residents = Residents(launch.merges, launch.engine["max_loras"], scratch)
        self.num_swaps = 0  # adapters that the running engine was given
        self._probe_ids = itertools.count(-1, -1)  # beside the requests', which are positive
        self._probes: dict[int, Probe] = {}
        self._process: VllmProcess | None = None
        self._deaths = 0
        self._is_asleep = False
        self.is_ready = False

    def start(self) -> None:
        """Start the engine and hold the base model in it against the trainer's."""
        self._start_process()
        base_id = f"base:{self._base.name}"
        while self.residents.get(base_id) is None or self._probes:
            event = self.wait()
            if event["event"] == "died":
                raise TinsmithError(self._obituary(event))
            if (refusal := self.on_event(event)) is not None:
                raise refusal[1]
            if event["event"] == "ready":
                self.install(base_id, in_use=())

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
        self._process, self.is_ready, self._is_asleep = None, False, False
        self.num_swaps = 0
        self._probes.clear()
        self.residents.clear()

    def restart(self) -> None:
        """A new engine in place of the one that there is."""
        self.stop()
        self._start_process()

    @property
    def pid(self) -> int | None:
        """Of the engine's process."""
        return None if self._process is None else self._process.pid

    @property
    def has_events(self) -> bool:
        return self._process is not None and self._process.has_events

    @property
    def is_up(self) -> bool:
        """Whether there is an engine, or one on its way, that does not sleep."""
        return self._process is not None and not self._is_asleep

    @property
    def is_probing(self) -> bool:
        """Whether the engine still has to show what it computes with some weights."""
        return bool(self._probes)

    def take(self) -> list[dict[str, Any]]:
        return [] if self._process is None else self._process.take()

    def wait(self) -> dict[str, Any]:
        """The next event, whenever it comes."""
        assert self._process is not None
        return self._process.wait()

    def say(self, order: dict[str, Any]) -> None:
        if self._process is not None:
            self._process.say(order)

    def expect_answers(self, are_asked: bool) -> None:
        """Say whether requests are under way: an engine that then says nothing is stuck."""
        if self._process is not None:
            self._process.expect_answers(are_asked or bool(self._probes))

    def wake(self) -> None:
        """Have an engine that runs, or is about to."""
        if self._process is None:
            self._start_process()
        if self._is_asleep:
            self._take_room()
            self.say({"do": "wake"})
            self._is_asleep = False

    def sleep(self) -> None:
        """Let the engine give up its memory, and wait until it has."""
        if self._is_asleep or not self.is_ready:
            return
        self.expect_answers(True)
        self.say({"do": "sleep"})
        while self.is_ready and not self._is_asleep:
            event = self.wait()
            if event["event"] == "died":
                self.on_death(event, 0)
            else:
                self.on_event(event)
        if self._process is not None:
            self._process.expect_answers(False)  # however long it sleeps

    def install(self, snapshot_id: str, in_use: Collection[str]) -> Resident | None:
        """Send the weights of a snapshot and a probe behind them; None if they have to wait."""
        weights = None
        if snapshot_id in self._snapshots:
            weights = self._snapshots.get(snapshot_id)[1]
        rank = 0 if weights is None else weights.settings.rank
        if not self.launch.merges and rank > self.launch.engine["max_lora_rank"]:
            if not in_use:
                self.launch = self.launch.with_rank(rank)
                self.restart()
            return None
        dropped = self.residents.make_room(snapshot_id, in_use)
        if dropped is None:
            return None
        for number in dropped:
            self.say({"do": "remove", "number": number})
        resident = self.residents.install(snapshot_id, self._base, weights)
        path = None if resident.folder is None else str(resident.folder)
        self.num_swaps += path is not None
        if path is not None or self.launch.merges:
            self.say({"do": "install", "number": resident.number, "path": path})
        request = probe_request(self._base)
        probe_id = next(self._probe_ids)
        self.say(sample_order(probe_id, resident, request, [0]))
        # While the engine does its part.
        expected_V = expected_logprobs(self._base, weights, request.prompt)[-1]
        self._probes[probe_id] = Probe(snapshot_id, resident.salt, expected_V)
        self.expect_answers(True)
        return resident

    def unload(self, snapshot_id: str) -> None:
        """Let the engine forget a snapshot's weights, if it has them."""
        resident = self.residents.drop(snapshot_id)
        if resident is not None:
            self.say({"do": "remove", "number": resident.number})

    def note_answer(self) -> None:
        """An engine that answers is a sound one."""
        self._deaths = 0

    def on_event(self, event: dict[str, Any]) -> Refusal | None:
        """Act on what the engine said of itself and its weights."""
        match event["event"]:
            case "ready":
                self.is_ready = True
                log.info("vLLM %s samples %s", event["vllm"], self._base.name)
            case "asleep":
                self._is_asleep = True
            case "finished" if (probe := self._probes.pop(event["id"], None)) is not None:
                return self._judge(probe, event)
            case "refused" if (owner := self.residents.owner(event["number"])) is not None:
                words = event["message"]
                return owner, TinsmithError(
                    f"vLLM did not take the weights: {words}; {advice(words)}"
                )
            case "failed" if (probe := self._probes.pop(event["id"], None)) is not None:
                return probe.snapshot_id, TinsmithError(f"vLLM refuses: {event['message']}")
        return None

    def on_death(self, event: dict[str, Any], num_lost: int) -> TinsmithError | None:
        """Clear up after the engine; the error of all requests, if there is no use in another
        one. Else it is started when there are some."""
        was_ready, message = self.is_ready, self._obituary(event)
        self.stop()
        self._deaths += 1
        if was_ready and self._deaths < MAX_DEATHS:
            log.warning("%s; it is started again, and %d requests are repeated", message, num_lost)
            return None
        self._deaths = 0
        return TinsmithError(message)

    def _take_room(self) -> None:
        """What the trainer no longer needs, PyTorch keeps for it where nobody says so."""
        if self.launch.sleeps:
            torch.cuda.empty_cache()

    def _start_process(self) -> None:
        torch.cuda.empty_cache()  # vLLM looks at what is free, whether it will sleep or not
        self._process = VllmProcess(self.launch, self._on_event)

    def _obituary(self, event: dict[str, Any]) -> str:
        assert self._process is not None
        words = self._process.last_words()
        code, did = event["code"], "died" if self.is_ready else "did not start"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the vLLM engine of {self._base.name} {did} ({how}): {words}; {advice(words)}"

    def _judge(self, probe: Probe, answer: dict[str, Any]) -> Refusal | None:
        resident = self.residents.get(probe.snapshot_id)
        if resident is None or resident.salt != probe.salt:
            return None  # newer weights are on their way, with a probe of their own
        top = top_of(answer)
        try:
            check_probe(top.logprobs[0], probe.expected_V[top.token_ids[0]], self._base.dtype)
        except TinsmithError as error:
            return probe.snapshot_id, error
        self.residents.verify(probe.snapshot_id)
        return None
