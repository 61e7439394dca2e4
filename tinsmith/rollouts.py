"""Completions from the sampler, and the groups that a paradigm makes of them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass

import numpy as np
import tinker

from tinsmith.chat import Chat
from tinsmith.objectives.advantages import has_variance
from tinsmith.types import Completion, Group, Sample


@dataclass(frozen=True, slots=True)
class Pending:
    """Completions that were asked for in one request; a call waits for them."""

    answer: tinker.APIFuture[tinker.SampleResponse]
    chat: Chat

    def __call__(self) -> list[Completion]:
        return [_completion(sequence, self.chat) for sequence in self.answer.result().sequences]


def as_answered(pending: Sequence[Pending]) -> Iterator[int]:
    """The places of requests in the order of their answers, so that what came early can be graded
    while the others are still sampled."""
    places = {request.answer.future(): place for place, request in enumerate(pending)}
    for future in as_completed(places):
        yield places[future]


@dataclass(frozen=True, slots=True)
class Sampler:
    """A snapshot of the policy, how completions are drawn from it, and, in training, for which
    step."""

    client: tinker.SamplingClient
    chat: Chat
    max_tokens: int
    temperature: float = 1.0
    step: int = 0

    def submit(self, prompt_tokens: Sequence[int], num_samples: int, seed: int) -> Pending:
        """Ask for completions of a prompt in one request; calling the result waits for them."""
        future = self.client.sample(
            prompt=tinker.ModelInput.from_ints(list(prompt_tokens)),
            num_samples=num_samples,
            sampling_params=tinker.SamplingParams(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=seed,
                stop=self.chat.stop_token_ids,
            ),
        )
        return Pending(future, self.chat)


def _completion(sequence: tinker.SampledSequence, chat: Chat) -> Completion:
    logprobs = sequence.logprobs
    assert logprobs is not None, "a sampler always returns log-probabilities"
    return Completion(
        tokens=tuple(sequence.tokens),
        logprobs=tuple(logprobs),
        text=chat.decode(sequence.tokens),
        is_finished=sequence.stop_reason == "stop",
    )


def rewards_P_G(groups: Sequence[Group], speaker: str) -> np.ndarray:
    """The rewards of a speaker: one row per group, one column per rollout."""
    return np.array(
        [[rollout.rewards[speaker].value for rollout in group.rollouts] for group in groups]
    )


def is_right_P_G(groups: Sequence[Group], speaker: str) -> np.ndarray:
    """Where a speaker's answer is right: one row per group, one column per rollout."""
    return np.array(
        [[rollout.rewards[speaker].is_right for rollout in group.rollouts] for group in groups]
    )


def has_signal_P(groups: Sequence[Group]) -> np.ndarray:
    """True for the groups in which the rewards of some speaker differ."""
    speakers = groups[0].rollouts[0].rewards
    return np.any([has_variance(rewards_P_G(groups, speaker)) for speaker in speakers], axis=0)


def verdicts_P_G(groups: Sequence[Group], speaker: str) -> np.ndarray:
    """The judge's verdicts on a speaker, a row per group and a column per rollout; 0, which is a
    draw, where nobody judges."""
    return np.array([[r.verdicts.get(speaker, 0.0) for r in group.rollouts] for group in groups])


def samples_of(groups: Sequence[Group], speaker: str, advantages_P_G: np.ndarray) -> list[Sample]:
    """The turns of a speaker in order, every token with the advantage of its rollout."""
    return [
        Sample(
            problem=group.problem,
            group=p,
            rollout=g,
            turn=turn,
            reward=rollout.rewards.get(speaker),
            advantages=(float(advantages_P_G[p, g]),) * len(turn.completion.tokens),
            place=place,
            verdict=rollout.verdicts.get(speaker),
        )
        for p, group in enumerate(groups)
        for g, rollout in enumerate(group.rollouts)
        for place, turn in enumerate(rollout.turns)
        if turn.speaker == speaker
    ]


def samples_of_others(groups: Sequence[Group], speakers: Sequence[str]) -> list[Sample]:
    """The turns of all but `speakers`, such as a frozen opponent: recorded and not trained on."""
    turns = [turn for group in groups for rollout in group.rollouts for turn in rollout.turns]
    others = dict.fromkeys(turn.speaker for turn in turns if turn.speaker not in speakers)
    nothing_P_G = np.zeros((len(groups), max(len(group.rollouts) for group in groups)))
    return [sample for other in others for sample in samples_of(groups, other, nothing_P_G)]
