"""The requests on sampling sessions."""

import secrets

from tinsmith.backend.core import Core, Gone, NotFound
from tinsmith.backend.engine import failure
from tinsmith.backend.futures import Failure, Promise, ProtoResult
from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.trainer import Trainer
from tinsmith.backend.queue import Queue
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.storage.records import Sampler
from tinsmith.backend.wire.messages import sample_response, sampling_request
from tinsmith.backend.wire.requests import CreateSamplingSessionRequest, SampleRequest
from tinsmith.errors import TinsmithError

# The client makes request ids of its number times 10^9 and a counter, in 63 bits.
MAX_CLONES = 1_000_000_000


class Samplers:
    """Sampling sessions: a base model, a checkpoint, or weights of a run in training.

    Called on the event loop, but for `add_snapshot`, `add_inflight` and `free`.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        # Of runs in training: they end with this server. All inflight ones of a run share weights.
        self._of_runs: dict[str, Sampler] = {}
        self._shared_weights: dict[str, str] = {}
        self._pinned: dict[str, LoraSettings] = {}
        self._clones: dict[str, set[int]] = {}
        self._queue = Queue()
        self._jobs: dict[str, Job] = {}

    def create(self, request: CreateSamplingSessionRequest) -> str:
        """Open a session on a base model or on a checkpoint as it is now."""
        self._core.require_session(request.session_id)
        sampler_id = _sampler_id(request.session_id, request.sampling_session_seq_id)
        if request.model_path is not None:
            path = request.model_path
            checkpoint, run = self._core.checkpoint(path, "sampler_weights", "weights")
            sampler = Sampler(request.base_model or run.base_model, path, checkpoint.folder)
        elif request.base_model is not None:
            sampler = Sampler(request.base_model)
        else:
            raise TinsmithError("create_sampling_session needs base_model or model_path")
        self._core.base(sampler.base_model)
        self._pin(sampler_id, sampler)
        self._core.store.add_sampler(sampler_id, sampler)
        return sampler_id

    def add_snapshot(self, model_id: str, seq_id: int, trainer: Trainer) -> str:
        """Open a session on a run's weights as they are now (on the engine's thread)."""
        sampler_id = _sampler_id(model_id.split(":")[0], seq_id)
        self._core.pool.snapshots.add(sampler_id, trainer.base, trainer.weights())
        self._of_runs[sampler_id] = Sampler(trainer.base.name)
        return sampler_id

    def add_inflight(self, model_id: str, seq_id: int, trainer: Trainer) -> str:
        """Give a run's present weights to all its inflight sessions and open another one (on the
        engine's thread). Completions under way go on with them from their next token."""
        weights_id = f"{model_id}:inflight"
        self._core.pool.snapshots.add(weights_id, trainer.base, trainer.weights())
        self._core.pool.replace(weights_id)
        sampler_id = _sampler_id(model_id.split(":")[0], seq_id)
        self._of_runs[sampler_id] = Sampler(trainer.base.name)
        self._shared_weights[sampler_id] = weights_id
        return sampler_id

    def find(self, sampler_id: str) -> Sampler:
        """What a session samples from."""
        if sampler_id in self._core.pool.snapshots.dropped:
            raise Gone(
                f"the weights of sampling session {sampler_id!r} were dropped, since the disk was "
                "short and nobody had sampled from them for an hour; keep weights for longer with "
                "save_weights_for_sampler(name)"
            )
        found = self._of_runs.get(sampler_id) or self._core.store.sampler(sampler_id)
        if found is not None:
            return found
        raise NotFound(
            f"sampling session {sampler_id!r} does not exist here; if the server was restarted, "
            "sample from a saved checkpoint or save the weights for sampling again"
        )

    def of_session(self, session_id: str) -> list[str]:
        """The ids of the sampling sessions of a session."""
        snapshots = [key for key in list(self._of_runs) if key.startswith(f"{session_id}:")]
        return sorted({*self._core.store.sessions.samplers(session_id), *snapshots})

    def join(self, sampler_id: str) -> int:
        """A number for another client of a sampling session, which none of its clients has.

        Drawn, not counted: clients of before a restart keep theirs.
        """
        self.find(sampler_id)
        taken = self._clones.setdefault(sampler_id, set())
        while (number := 1 + secrets.randbelow(MAX_CLONES)) in taken:
            pass
        taken.add(number)
        return number

    def sample(self, request: SampleRequest) -> Promise:
        """Queue a request for completions; a repeated one gets the promise of the first."""
        sampler_id = request.sampling_session_id
        request_id = f"{sampler_id}:{request.seq_id}"
        if (earlier := self._core.promises.get(request_id)) is not None:
            return earlier
        session_id = sampler_id.split(":")[0]
        found = self.find(sampler_id)
        self._core.require_session(session_id)
        self._pin(sampler_id, found)
        num_tokens = sum(len(chunk.tokens) for chunk in request.prompt.chunks)
        self._queue.enter(session_id, request_id, num_tokens)
        promise = self._core.promises.create(request_id)
        promise.when_done(lambda: self._queue.leave(session_id, request_id))
        self._core.engine.submit("sample", lambda: self._start(request, found, promise), promise)
        return promise

    def cancel(self, request_id: str) -> None:
        """Give up a request that its client no longer waits for."""
        promise = self._core.promises.get(request_id)
        if promise is None or promise.is_done:
            return
        if not self._queue.holds(request_id.split(":")[0], request_id):
            raise TinsmithError(
                f"{request_id!r} is not a sampling request; only those are cancelled"
            )

        def forget() -> Failure:
            if (job := self._jobs.pop(request_id, None)) is not None:
                self._core.pool.cancel(job)
            return Failure("the request was cancelled by its client", "user")

        self._core.engine.submit("cancel_future", forget, promise)

    def free(self, session_id: str) -> None:
        """Drop the requests and the weights of a session (on the engine's thread)."""
        prefix = f"{session_id}:"
        for request_id in [key for key in self._jobs if key.startswith(prefix)]:
            job = self._jobs[request_id]
            self._core.pool.cancel(job)
            job.fail(TinsmithError("the session of this sampling client has ended"))
        for weights_id in self._core.pool.snapshots.ids(prefix):
            self._core.pool.forget(weights_id)
        for sampler_id in [key for key in self._pinned if key.startswith(prefix)]:
            del self._pinned[sampler_id]
            self._core.pool.snapshots.remove_pinned(sampler_id)
        for by_sampler in (self._of_runs, self._shared_weights, self._clones):
            for sampler_id in [key for key in by_sampler if key.startswith(prefix)]:
                del by_sampler[sampler_id]

    def _pin(self, sampler_id: str, sampler: Sampler) -> None:
        """Hold the checkpoint that a session was made on, unless it is held already."""
        if sampler.model_path is None or sampler_id in self._pinned:
            return
        checkpoint, run = self._core.checkpoint(sampler.model_path, "sampler_weights", "weights")
        if sampler.folder not in (None, checkpoint.folder):
            raise Gone(
                f"sampling session {sampler_id!r} was made on an earlier checkpoint at "
                f"{sampler.model_path}, which was replaced before the server was restarted; make a "
                "new sampling client"
            )
        self._core.pool.snapshots.pin(sampler_id, self._core.store.folder(checkpoint))
        self._pinned[sampler_id] = run.lora

    def _start(self, request: SampleRequest, sampler: Sampler, promise: Promise) -> None:
        """Add a request to the batch of its weights (on the engine's thread)."""
        base = self._core.base(sampler.base_model)
        sampler_id, request_id = request.sampling_session_id, promise.request_id
        weights_id = self._weights_id(sampler_id, sampler)
        if sampler_id not in self._of_runs:
            lora = None if sampler.model_path is None else self._pinned[sampler_id]
            self._core.pool.snapshots.adopt(weights_id, base, lora)

        def resolve(result: ProtoResult | Failure) -> None:
            self._jobs.pop(request_id, None)
            promise.resolve(result)

        self._jobs[request_id] = job = Job(
            sampling_request(request, base, self._core.settings, self._core.seeds.of(request_id)),
            deliver=lambda result: resolve(ProtoResult(sample_response(request, result))),
            fail=lambda error: resolve(failure("sample", error, request_id)),
            session_id=sampler_id.split(":")[0],
        )
        self._core.pool.add(weights_id, job)

    def _weights_id(self, sampler_id: str, sampler: Sampler) -> str:
        if sampler_id in self._of_runs:
            return self._shared_weights.get(sampler_id, sampler_id)
        return sampler_id if sampler.model_path is not None else f"base:{sampler.base_model}"


def _sampler_id(session_id: str, seq_id: int) -> str:
    return f"{session_id}:sample:{seq_id}"
