"""How good is a checkpoint? Accuracy and pass@k on held-out problems, and what training changed."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.paradigms import Paradigm, checked, num_rollouts
from tinsmith.randomness import derive_seed
from tinsmith.rollouts import Sampler
from tinsmith.statistics import Interval, bootstrap_mean, clustered_mean, pass_at_k
from tinsmith.tasks import Task
from tinsmith.types import Group, Problem

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """Accuracy now minus accuracy then, over the problems that both evaluations hold."""

    num_problems: int


def sample_heldout(
    settings: config.Evaluation,
    task: Task,
    paradigm: Paradigm,
    sampler: Sampler,
    problems: Sequence[Problem],
    seed: int,
) -> list[Row]:
    """One row for each speaker's sample on the first held-out problems.

    A problem's seed is the same for every checkpoint, so that differences are the weights' alone.
    """
    chosen = problems[: settings.num_problems]
    if len(chosen) < settings.num_problems:
        raise TinsmithError(
            f"evaluation.num_problems must be at most the {len(chosen)} held-out problems, got"
            f" {settings.num_problems}"
        )
    seeds = [derive_seed(seed, "evaluation", problem.id) for problem in chosen]
    size = num_rollouts(paradigm, settings.samples_per_problem)
    groups = checked(paradigm.play(task, chosen, size, sampler, seeds), paradigm, chosen, size)
    return [row for group in groups for row in _rows(group)]


def summarise(rows: Sequence[Row], pass_at: Sequence[int], seed: int) -> dict[str, Any]:
    """The numbers of an evaluation, from its samples."""
    right = _right_by_problem(rows)
    num_samples = len(next(iter(right.values())))
    interval, method = clustered_mean(right.values(), derive_seed(seed, "accuracy"), "problems")
    return {
        "accuracy": interval.mean,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "interval": method,
        "reward_mean": _mean(row["reward"] for row in rows),
        "share_finished": _mean(row["is_finished"] for row in rows),
        "completion_length_mean": _mean(len(row["tokens"]) for row in rows),
        "num_problems": len(right),
        "samples_per_problem": num_samples,
        "pass_at_k": {
            str(k): _mean(pass_at_k(num_samples, sum(values), k) for values in right.values())
            for k in pass_at
        },
    }


def paired_difference(rows: Iterable[Row], earlier: Iterable[Row], seed: int) -> Difference:
    """Each problem's change in its share of right samples, averaged; bootstrap over problems."""
    now, then = _right_by_problem(rows), _right_by_problem(earlier)
    shared = [problem for problem in now if problem in then]
    if not shared:
        raise TinsmithError(
            "the evaluations to compare must share problems, got none in common: were they made"
            " from different data?"
        )
    changes = [_mean(now[problem]) - _mean(then[problem]) for problem in shared]
    interval = bootstrap_mean(changes, derive_seed(seed, "paired difference"))
    return Difference(interval.mean, interval.low, interval.high, len(shared))


def read_rows(path: Path) -> list[Row]:
    """The samples of an earlier evaluation."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _rows(group: Group) -> list[Row]:
    """A row for the graded turn of each of the policy's speakers."""
    return [
        {
            "problem_id": group.problem.id,
            "sample": index,
            "speaker": turn.speaker,
            "question": group.problem.question,
            "answer": group.problem.answer,
            "completion": turn.completion.text,
            "tokens": turn.completion.tokens,
            "logprobs": turn.completion.logprobs,
            "reward": rollout.rewards[turn.speaker].value,
            "reward_terms": dict(rollout.rewards[turn.speaker].terms),
            "is_right": rollout.rewards[turn.speaker].is_right,
            "is_finished": turn.completion.is_finished,
            "said": [[turn.speaker, turn.completion.text] for turn in rollout.turns],
        }
        for index, rollout in enumerate(group.rollouts)
        for turn in rollout.turns
        if turn.is_graded and turn.speaker in rollout.rewards
    ]


def _right_by_problem(rows: Iterable[Row]) -> dict[str, list[bool]]:
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right[row["problem_id"]].append(bool(row["is_right"]))
    return dict(right)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
