"""What flows through a training step, from a problem to the record of the step: frozen, no logic.

An episode has speakers; a single-turn episode has one. A rollout is one episode on one problem: its
turns in order, and a reward for each speaker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the answer that its graders refer to, and what else its task reads of its row."""

    id: str
    question: str
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy wrote after a prompt; the stop token that ended it is its last token.

    `text` leaves special tokens out. It is there for graders and people and is never encoded again.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    is_finished: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's completion, the prompt it answers, and whether it holds the graded answer."""

    speaker: str
    prompt_tokens: tuple[int, ...]
    completion: Completion
    is_graded: bool = True


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a speaker: its terms by name, their sum, whether the answer is right, and
    whether one was found to grade."""

    value: float
    terms: Mapping[str, float]
    is_right: bool
    is_parsed: bool = True


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode on a problem; `rewards` and `verdicts` are keyed by speaker.

    Speakers who are not the policy, such as a frozen opponent, have turns and no reward. Verdicts
    are a judge's, 1 for who wins, -1 for who loses, and none where nobody judges.
    """

    problem: Problem
    turns: tuple[Turn, ...]
    rewards: Mapping[str, Reward]
    verdicts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one problem, which are compared with each other."""

    problem: Problem
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A turn as training saw it: what it earned, and the weight that each of its tokens got.

    `advantages` has one number per completion token: the advantage under importance sampling, the
    weight under cross-entropy; `trainer_logprobs` is None where the turn was left out of the batch.
    `old_logprobs` are the trainer's before the update, where a stage has the loss compare the
    policy with itself as it was instead of with its sampler.
    `place` is the turn's in its rollout, and `verdict` what the judge said of its speaker.
    """

    problem: Problem
    group: int
    rollout: int
    turn: Turn
    reward: Reward | None
    advantages: tuple[float, ...]
    trainer_logprobs: tuple[float, ...] | None = None
    old_logprobs: tuple[float, ...] | None = None
    place: int = 0
    verdict: float | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step, 0-based: its metrics by name, and all that it was computed from."""

    step: int
    metrics: Mapping[str, float]
    samples: tuple[Sample, ...]
