"""What all parts of a running server share."""

from collections.abc import Mapping
from dataclasses import dataclass

from tinsmith.backend.base_model import BaseModel
from tinsmith.backend.engine import Engine
from tinsmith.backend.futures import Promises
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.backend.sequencer import Sequencer
from tinsmith.backend.store import Checkpoint, Run, Store
from tinsmith.errors import TinsmithError


class NotFound(TinsmithError):
    """A session, model, sampler or checkpoint that this server does not know."""


class Gone(TinsmithError):
    """A session or sampler that was here and will not come back."""


class Busy(TinsmithError):
    """More is queued than the server keeps; the client is to ask again later."""


@dataclass(frozen=True, slots=True)
class Core:
    """Base models by served name, the store, the engine and the promises of a server.

    `sequencer` keeps the requests of each model in order.
    """

    bases: Mapping[str, BaseModel]
    store: Store
    pool: SamplerPool
    engine: Engine
    lora_alpha: float
    token_budget: int
    promises: Promises
    sequencer: Sequencer

    def base(self, name: str) -> BaseModel:
        """The base model served under a name."""
        if name not in self.bases:
            raise NotFound(
                f"base_model {name!r} is not served here; served: {', '.join(self.bases)} "
                "(start the server with --model NAME=DIR to add one)"
            )
        return self.bases[name]

    def checkpoint(self, path: str, *kinds: str) -> tuple[Checkpoint, Run]:
        """The checkpoint at a tinker:// path, of one of `kinds`, and its run."""
        checkpoint = self.store.checkpoint(path)
        if checkpoint is None:
            raise NotFound(f"checkpoint {path} does not exist in {self.store.directory}")
        if checkpoint.kind not in kinds:
            raise TinsmithError(
                f"checkpoint {path} is of kind {checkpoint.kind}, needed: {' or '.join(kinds)}"
            )
        run = self.store.run(checkpoint.model_id)
        assert run is not None, "a checkpoint without its run"
        return checkpoint, run

    def require_session(self, session_id: str) -> None:
        if not self.store.has_session(session_id):
            raise NotFound(f"session {session_id!r} does not exist; create one first")
