"""What the run cost: time and memory by rule, from the jobs' records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RuleCost:
    """All jobs of one rule together; memory is that of its largest process."""

    rule: str
    num_jobs: int
    total_s: float
    longest_s: float
    peak_memory_bytes: int


def costs_by_rule(jobs: Sequence[Row]) -> tuple[RuleCost, ...]:
    """Rules in the order in which their first jobs started."""
    by_rule: dict[str, list[Row]] = {}
    for job in sorted(jobs, key=lambda job: job["started"]):
        by_rule.setdefault(job["rule"], []).append(job)
    return tuple(_cost(rule, of_rule) for rule, of_rule in by_rule.items())


def _cost(rule: str, jobs: Sequence[Row]) -> RuleCost:
    durations = [job["duration_s"] for job in jobs]
    peak = max(max(job["peak_memory_bytes"].values()) for job in jobs)
    return RuleCost(rule, len(jobs), sum(durations), max(durations), peak)
