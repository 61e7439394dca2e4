"""What all parts of a running server share."""

from collections.abc import Mapping
from dataclasses import dataclass

from structlog.contextvars import bind_contextvars

from tinsmith.backend.engine import Engine
from tinsmith.backend.futures import Promises
from tinsmith.backend.metrics import Metrics
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.ranks.group import RankGroup
from tinsmith.backend.sampling.interface import Sampling
from tinsmith.backend.seeds import Seeds
from tinsmith.backend.sequencer import Sequencer
from tinsmith.backend.storage.records import Checkpoint, Run
from tinsmith.backend.storage.store import Store
from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings

SAVED_BY = {
    "weights": "save_state",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}
# The detail of a session's end that a cancelled run has brought about.
CANCELLED = "cancelled"


class NotFound(TinsmithError):
    """A session, model, sampler or checkpoint that this server does not know."""


class Gone(TinsmithError):
    """A session or sampler that was here and will not come back."""


class Busy(TinsmithError):
    """More is queued than the server keeps; the client is to ask again later."""


@dataclass(frozen=True, slots=True)
class Core:
    """Base models by served name, the store, the engine and the promises of a server.

    `sequencer` keeps the requests of each model in order; `token_budget` is what that of the
    settings comes to on this device, `activation_bytes` what the activations of a micro-batch of
    each base model may take; `ranks` share the training where there are several GPUs.
    """

    bases: Mapping[str, BaseModel]
    store: Store
    pool: Sampling
    engine: Engine
    settings: ServerSettings
    seeds: Seeds
    token_budget: int
    promises: Promises
    sequencer: Sequencer
    metrics: Metrics
    activation_bytes: Mapping[str, int]
    ranks: RankGroup | None = None

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
                f"checkpoint {path} is of kind {checkpoint.kind}, needed: "
                + " or ".join(f"{kind} ({SAVED_BY[kind]} makes one)" for kind in kinds)
            )
        run = self.store.run(checkpoint.model_id)
        assert run is not None, "a checkpoint without its run"
        return checkpoint, run

    def require_session(self, session_id: str) -> None:
        """Refuse what a client asks in the name of a session that is not there or has ended."""
        bind_contextvars(session_id=session_id)
        session = self.store.sessions.find(session_id)
        if session is None:
            raise NotFound(f"session {session_id!r} does not exist; create one first")
        if session.ended is not None:
            raise Gone(f"session {session_id!r} has ended; make a new ServiceClient")

    def lost_model(self, model_id: str) -> NotFound:
        """What to tell a client whose model this server does not have in memory: from where it
        can go on."""
        message = f"model {model_id!r} is not loaded in this server"
        if self.store.run(model_id) is None:
            return NotFound(f"{message}, and {self.store.directory} has no run of this name")
        states = self.store.checkpoints(model_id, "weights", limit=1)
        advice = (
            "go on from its last checkpoint with "
            f"create_training_client_from_state_with_optimizer({states[0].path!r})"
            if states
            else "no state of it was saved, so start again with create_lora_training_client"
        )
        session = self.store.sessions.find(model_id.split(":")[0])
        is_cancelled = session and session.ended and session.ended.get("detail") == CANCELLED
        why = (
            "the run was cancelled"
            if is_cancelled
            else "the server was restarted, or the session has ended"
        )
        return NotFound(f"{message}: {why}; {advice}")


def refuse_access_token(token: str | None) -> None:
    if token is not None:
        raise TinsmithError(
            "weights_access_token opens another account's weights, and this server has no "
            "accounts; leave it out"
        )
