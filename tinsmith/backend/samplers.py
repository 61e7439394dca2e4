"""The requests on sampling sessions."""

from tinsmith.backend.adapter import AdapterWeights
from tinsmith.backend.core import Core, NotFound
from tinsmith.backend.engine import failure
from tinsmith.backend.futures import Promise, ProtoResult
from tinsmith.backend.requests import CreateSamplingSessionRequest, SampleRequest
from tinsmith.backend.sampling.batch import Job
from tinsmith.backend.trainer import Trainer
from tinsmith.backend.wire import sample_response, sampling_request
from tinsmith.errors import TinsmithError


class Samplers:
    """Sampling sessions: a base model, a checkpoint or a snapshot of a run in training."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # Sampler id to base model, of snapshots of runs: they end with this server.
        self._snapshots: dict[str, str] = {}

    def create(self, request: CreateSamplingSessionRequest) -> str:
        """Open a session on a base model or on the weights of a checkpoint."""
        self._core.require_session(request.session_id)
        sampler_id = _sampler_id(request.session_id, request.sampling_session_seq_id)
        if request.model_path is not None:
            _, run = self._core.checkpoint(request.model_path, "sampler_weights", "weights")
            base_model = request.base_model or run.base_model
        elif request.base_model is not None:
            base_model = request.base_model
        else:
            raise TinsmithError("create_sampling_session needs base_model or model_path")
        self._core.base(base_model)
        self._core.store.add_sampler(sampler_id, base_model, request.model_path)
        return sampler_id

    def add_snapshot(self, session_id: str, seq_id: int, trainer: Trainer) -> str:
        """Open a session on a run's weights as they are now (on the engine's thread)."""
        sampler_id = _sampler_id(session_id, seq_id)
        self._core.pool.snapshots.add(sampler_id, trainer.base, trainer.weights())
        self._snapshots[sampler_id] = trainer.base.name
        return sampler_id

    def find(self, sampler_id: str) -> tuple[str, str | None]:
        """Base model and checkpoint path of a session; None for a base model or a snapshot."""
        if sampler_id in self._snapshots:
            return self._snapshots[sampler_id], None
        if (found := self._core.store.sampler(sampler_id)) is not None:
            return found
        raise NotFound(
            f"sampling session {sampler_id!r} does not exist here; if the server was restarted, "
            "sample from a saved checkpoint or save the weights for sampling again"
        )

    def sample(self, request: SampleRequest) -> Promise:
        """Queue a request for completions; a repeated one gets the promise of the first."""
        sampler_id = request.sampling_session_id
        found = self.find(sampler_id)
        request_id = f"{sampler_id}:{request.seq_id}"
        if (earlier := self._core.promises.get(request_id)) is not None:
            return earlier
        promise = self._core.promises.create(request_id)
        self._core.engine.submit(lambda: self._start(request, *found, promise), promise)
        return promise

    def _start(
        self, request: SampleRequest, base_model: str, model_path: str | None, promise: Promise
    ) -> None:
        sampling = sampling_request(request, self._core.base(base_model))
        self._load(request.sampling_session_id, base_model, model_path)
        job = Job(
            sampling,
            deliver=lambda result: promise.resolve(ProtoResult(sample_response(result))),
            fail=lambda error: promise.resolve(failure(error)),
        )
        self._core.pool.add(request.sampling_session_id, job)

    def _load(self, sampler_id: str, base_model: str, model_path: str | None) -> None:
        """Take a session's weights into memory, where they are not yet."""
        snapshots = self._core.pool.snapshots
        if sampler_id in snapshots:
            return
        base = self._core.base(base_model)
        weights = None
        if model_path is not None:
            checkpoint, run = self._core.checkpoint(model_path, "sampler_weights", "weights")
            weights = AdapterWeights.load(self._core.store.folder(checkpoint), run.lora)
        snapshots.add(sampler_id, base, weights)

    def free(self, session_id: str) -> None:
        """Drop the snapshots of a session."""
        for sampler_id in self._core.pool.snapshots.ids(f"{session_id}:"):
            self._snapshots.pop(sampler_id, None)
            self._core.pool.forget(sampler_id)


def _sampler_id(session_id: str, seq_id: int) -> str:
    return f"{session_id}:sample:{seq_id}"
