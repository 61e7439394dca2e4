"""The seam between a debate and its verdict."""

from collections.abc import Sequence
from typing import Protocol

from tinsmith.tasks import Task
from tinsmith.types import Rollout


class Judge(Protocol):
    """Decides debates of two speakers."""

    def judge(
        self,
        task: Task,
        debates: Sequence[Rollout],
        speakers: tuple[str, str],
        seeds: Sequence[int],
    ) -> list[float]:
        """The verdict on each debate from -1, the second speaker wins, to 1, the first does; 0 is a
        draw. `rewards` of a debate are what the task gives both speakers' answers. Whatever is
        drawn for a debate derives from its seed; all requests are sent before any is awaited."""
        ...
