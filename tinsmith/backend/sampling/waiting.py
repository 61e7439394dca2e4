"""The line of requests before a batch."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from tinsmith.backend.sampling.job import Job


class Waiting:
    """Requests in line: sessions take turns, each in the order of its own requests, so that one
    with thousands does not keep the others waiting."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()
        self._size = 0
        for job in jobs:
            self.add(job)

    def __iter__(self) -> Iterator[Job]:
        return (job for line in self._lines.values() for job in line)

    def __len__(self) -> int:
        return self._size

    def add(self, job: Job) -> None:
        self._lines.setdefault(job.session_id, deque()).append(job)
        self._size += 1

    def first(self) -> Job:
        """Whose turn it is."""
        return next(iter(self._lines.values()))[0]

    def pop_first(self) -> None:
        """Take the first request out of the line; another session comes next."""
        session_id, line = self._lines.popitem(last=False)
        line.popleft()
        self._size -= 1
        if line:
            self._lines[session_id] = line

    def remove(self, job: Job) -> None:
        """Take out a request, if it is in line."""
        line = self._lines.get(job.session_id)
        if line is None or job not in line:
            return
        line.remove(job)
        self._size -= 1
        if not line:
            del self._lines[job.session_id]

    def clear(self) -> None:
        self._lines.clear()
        self._size = 0
