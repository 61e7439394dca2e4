"""The requests on sampling sessions."""

from tinsmith.backend.adapter import AdapterWeights
from tinsmith.backend.core import Core, NotFound
from tinsmith.backend.engine import failure
from tinsmith.backend.futures import Promise, ProtoResult
from tinsmith.backend.records import Sampler
from tinsmith.backend.requests import CreateSamplingSessionRequest, SampleRequest
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.trainer import Trainer
from tinsmith.backend.wire import sample_response, sampling_request
from tinsmith.errors import TinsmithError


class Samplers:
    """Sampling sessions: a base model, a checkpoint or a snapshot of a run in training."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._snapshots: dict[str, Sampler] = {}  # of runs: they end with this server

    def create(self, request: CreateSamplingSessionRequest) -> str:
        """Open a session on a base model or on the weights of a checkpoint."""
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
        self._core.store.add_sampler(sampler_id, sampler)
        return sampler_id

    def add_snapshot(self, session_id: str, seq_id: int, trainer: Trainer) -> str:
        """Open a session on a run's weights as they are now (on the engine's thread)."""
        sampler_id = _sampler_id(session_id, seq_id)
        self._core.pool.snapshots.add(sampler_id, trainer.base, trainer.weights())
        self._snapshots[sampler_id] = Sampler(trainer.base.name)
        return sampler_id

    def find(self, sampler_id: str) -> Sampler:
        """What a session samples from."""
        found = self._snapshots.get(sampler_id) or self._core.store.sampler(sampler_id)
        if found is not None:
            return found
        raise NotFound(
            f"sampling session {sampler_id!r} does not exist here; if the server was restarted, "
            "sample from a saved checkpoint or save the weights for sampling again"
        )

    def of_session(self, session_id: str) -> list[str]:
        """The ids of the sampling sessions of a session."""
        snapshots = [key for key in self._snapshots if key.startswith(f"{session_id}:")]
        return sorted({*self._core.store.sessions.samplers(session_id), *snapshots})

    def sample(self, request: SampleRequest) -> Promise:
        """Queue a request for completions; a repeated one gets the promise of the first."""
        sampler_id = request.sampling_session_id
        found = self.find(sampler_id)
        request_id = f"{sampler_id}:{request.seq_id}"
        if (earlier := self._core.promises.get(request_id)) is not None:
            return earlier
        promise = self._core.promises.create(request_id)
        self._core.engine.submit("sample", lambda: self._start(request, found, promise), promise)
        return promise

    def _start(self, request: SampleRequest, sampler: Sampler, promise: Promise) -> None:
        base = self._core.base(sampler.base_model)
        sampling = sampling_request(request, base, self._core.substitutes)
        self._load(request.sampling_session_id, sampler)
        job = Job(
            sampling,
            deliver=lambda result: promise.resolve(ProtoResult(sample_response(request, result))),
            fail=lambda error: promise.resolve(failure("sample", error, promise.request_id)),
        )
        self._core.pool.add(request.sampling_session_id, job)

    def _load(self, sampler_id: str, sampler: Sampler) -> None:
        """Take a session's weights into memory, where they are not yet."""
        snapshots = self._core.pool.snapshots
        if sampler_id in snapshots:
            return
        base = self._core.base(sampler.base_model)
        weights = None
        if (path := sampler.model_path) is not None:
            checkpoint, run = self._core.checkpoint(path, "sampler_weights", "weights")
            weights = AdapterWeights.load(self._core.store.folder(checkpoint), run.lora)
        snapshots.add(sampler_id, base, weights)

    def free(self, session_id: str) -> None:
        """Drop the snapshots of a session."""
        for sampler_id in self._core.pool.snapshots.ids(f"{session_id}:"):
            self._snapshots.pop(sampler_id, None)
            self._core.pool.forget(sampler_id)


def _sampler_id(session_id: str, seq_id: int) -> str:
    return f"{session_id}:sample:{seq_id}"
