"""The clock: sides timed in turn after a warm-up. Nothing but the standard library."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A side's threads still turn when it has answered (vLLM's for a second, on a core of their own),
# which is not the next side's time.
REST_S = 2


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison: what runs, how many useful tokens a run handles, and what
    floating-point operations they need."""

    name: str
    run: Callable[[], object]
    num_tokens: int
    flops: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Median seconds of several runs after a warm-up, and tokens per second from it."""

    name: str
    num_tokens: int
    median_s: float
    runs_s: list[float]
    flops: float | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.median_s


def measure(case: str, contenders: Sequence[Contender], repeats: int) -> list[Measurement]:
    """Warm each side up once, then time the sides in turn, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for round_ in range(repeats + 1):
        for contender in contenders:
            time.sleep(REST_S)
            start = time.perf_counter()
            contender.run()
            elapsed_s = time.perf_counter() - start
            what = f"round {round_} of {repeats}" if round_ else "warm-up"
            print(f"{case}, {contender.name}, {what}: {elapsed_s:.2f} s", file=sys.stderr)
            if round_ > 0:
                seconds[contender.name].append(elapsed_s)
    return [
        Measurement(
            c.name, c.num_tokens, statistics.median(seconds[c.name]), seconds[c.name], c.flops
        )
        for c in contenders
    ]
