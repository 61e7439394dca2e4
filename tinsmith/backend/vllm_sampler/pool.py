"""What goes to a vLLM engine, and what stays with the trainer's own model."""

import logging
from collections.abc import Callable, Mapping

from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.interface import Sampling
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.backend.sampling.replica import should_merge
from tinsmith.backend.sampling.request import SamplingRequest, SamplingResult
from tinsmith.backend.sampling.snapshots import Snapshots
from tinsmith.backend.vllm_sampler.holder import Holder
from tinsmith.backend.vllm_sampler.launch import MAX_LORA_VOCABULARY, MAX_RANKS, launch_of
from tinsmith.backend.vllm_sampler.line import Line
from tinsmith.backend.vllm_sampler.messages import is_for_vllm, joined, parts_of
from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings

log = logging.getLogger(__name__)


class VllmPool(Sampling):
    """An engine for each base model. The few requests that vLLM does not answer as the server
    promises are answered by the transformers sampler, on the trainer's own copy of the model."""

    def __init__(
        self,
        bases: Mapping[str, BaseModel],
        settings: ServerSettings,
        snapshots: Snapshots,
        local: SamplerPool,
    ) -> None:
        self.snapshots = snapshots
        self._local = local
        self._parts: dict[Job, Job] = {}  # of requests in two parts the one under way
        self._on_change: Callable[[], None] = lambda: None
        self.lines = {
            name: Line(
                Holder(
                    base,
                    launch_of(base, settings),
                    snapshots,
                    snapshots.directory / f"vllm-{index}",
                    lambda: self._on_change(),
                ),
                settings.vllm_restart_every,
            )
            for index, (name, base) in enumerate(bases.items())
        }

    def start(self) -> None:
        """Start the engines; refused, with what to change, if one does not start or computes
        another model than the trainer."""
        for line in self.lines.values():
            line.start()

    def stop(self) -> None:
        for line in self.lines.values():
            line.stop()

    @property
    def is_idle(self) -> bool:
        return self._local.is_idle and all(line.is_idle for line in self.lines.values())

    @property
    def num_waiting(self) -> int:
        return self._local.num_waiting + sum(line.num_waiting for line in self.lines.values())

    @property
    def num_running(self) -> int:
        return self._local.num_running + sum(line.num_running for line in self.lines.values())

    def add(self, snapshot_id: str, job: Job) -> None:
        merges = self._line(snapshot_id).merges
        if self._is_unsafe(snapshot_id) or not is_for_vllm(job.request, merges=merges):
            self._local.add(snapshot_id, job)
        elif parts := parts_of(job.request, merges=merges):
            self._add_in_parts(snapshot_id, job, *parts)
        else:
            self.snapshots.touch(snapshot_id)
            self._line(snapshot_id).add(snapshot_id, job)

    def _is_unsafe(self, snapshot_id: str) -> bool:
        """Whether vLLM takes the base model for an adapter: on a CPU it computes rows without one
        with whatever adapter is the last that it has room for."""
        is_on_cpu = self.snapshots.base(snapshot_id).device.type == "cpu"
        merges = self._line(snapshot_id).merges
        return is_on_cpu and not merges and self.snapshots.is_plain(snapshot_id)

    def _add_in_parts(
        self, snapshot_id: str, job: Job, scored: SamplingRequest, drawn: SamplingRequest
    ) -> None:
        """Score the prompt on the trainer's model, then let vLLM draw."""

        def draw(scores: SamplingResult) -> None:
            def deliver(result: SamplingResult) -> None:
                self._parts.pop(job, None)
                prompt = joined(scores.prompt, result.prompt)
                job.deliver(SamplingResult(result.sequences, prompt))

            self._parts[job] = part = Job(drawn, deliver, fail, job.session_id, job.watch)
            self._line(snapshot_id).add(snapshot_id, part)

        def fail(error: BaseException) -> None:
            self._parts.pop(job, None)
            job.fail(error)

        self._parts[job] = part = Job(scored, draw, fail, job.session_id)
        self._local.add(snapshot_id, part)

    def step(self) -> int:
        sampled = self._step_locally()
        for line in self.lines.values():
            try:
                sampled += line.step()
            except Exception as error:  # requests on one engine must not take the server down
                log.exception("the requests on a vLLM engine failed")
                line.fail_all(error)
        return sampled

    def _step_locally(self) -> int:
        """Where engines share the trainer's GPU they make room for its model, and it ends all that
        it has: to change places at each token would cost more."""
        sampled, shares = 0, any(line.sleeps for line in self.lines.values())
        while not self._local.is_idle:
            self.make_room()
            sampled += self._local.step()
            if not shares:
                break
        return sampled

    def cancel(self, job: Job) -> None:
        job = self._parts.pop(job, job)
        self._local.cancel(job)
        for line in self.lines.values():
            line.cancel(job)

    def replace(self, snapshot_id: str) -> None:
        self._local.replace(snapshot_id)
        self._line(snapshot_id).replace(snapshot_id)

    def forget(self, snapshot_id: str) -> None:
        error = TinsmithError("the weights of this sampling client were dropped")
        self._line(snapshot_id).forget(snapshot_id, error)
        self._local.forget(snapshot_id)

    def check_adapter(self, base: BaseModel, settings: LoraSettings) -> None:
        """Where vLLM computes adapters beside the base model, it does not take all."""
        if should_merge(base.device, base.dtype):
            return
        if settings.rank > MAX_RANKS[-1]:
            raise TinsmithError(
                f"lora_config.rank must be at most {MAX_RANKS[-1]} for vLLM to sample from it, got "
                f"{settings.rank}; start the server with --sampler transformers for a higher one"
            )
        if settings.train_unembed and base.vocabulary_size > MAX_LORA_VOCABULARY:
            raise TinsmithError(
                f"vLLM puts no adapter on an unembedding of {base.vocabulary_size} tokens (at most "
                f"{MAX_LORA_VOCABULARY}), so it could not sample from what is trained; pass "
                "train_unembed=False (config: lora.train_unembed: false), or start the server "
                "with --sampler transformers"
            )

    def make_room(self) -> None:
        for line in self.lines.values():
            line.rest()

    def listen(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def _line(self, snapshot_id: str) -> Line:
        return self.lines[self.snapshots.base(snapshot_id).name]
