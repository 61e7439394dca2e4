"""What the server asks of a sampler, whichever library computes it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.snapshots import Snapshots


class Sampling(ABC):
    """Requests on snapshots. The engine's thread alone calls it, but for the two counts."""

    snapshots: Snapshots

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether a step would find nothing to do."""

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Sample requests that nobody has taken up yet; may be read from any thread."""

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Completions that are under way; may be read from any thread."""

    @abstractmethod
    def add(self, snapshot_id: str, job: Job) -> None:
        """Queue a request on a snapshot."""

    @abstractmethod
    def step(self) -> int:
        """Go on with what is under way; returns how many tokens were sampled."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Forget a request, wherever it is."""

    @abstractmethod
    def replace(self, snapshot_id: str) -> None:
        """Let completions under way go on with the weights that their snapshot has now."""

    @abstractmethod
    def forget(self, snapshot_id: str) -> None:
        """Drop a snapshot whose client is gone, and what is asked of it."""

    @abstractmethod
    def check_adapter(self, base: BaseModel, settings: LoraSettings) -> None:
        """Refuse an adapter that could be trained but not be sampled from."""

    @abstractmethod
    def make_room(self) -> None:
        """Give up memory of the trainer's device, before an operation that computes there."""

    @abstractmethod
    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change`, from any thread, when there is something for a step to do."""
