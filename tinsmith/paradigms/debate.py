"""Debate: two speakers propose an answer each, argue, and are judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.judges import Judge, make_judge
from tinsmith.opponents import Snapshots
from tinsmith.randomness import derive_seed
from tinsmith.rollouts import Sampler
from tinsmith.tasks import Task
from tinsmith.templates import fill
from tinsmith.types import Completion, Group, Problem, Reward, Rollout, Turn

BOTH_LEARN = ("first", "second")
ONE_LEARNS = ("policy", "opponent")

# Who speaks for the other side: of the policy's sampler and a problem's seed.
Choice = Callable[[Sampler, int], Sampler]


@dataclass(frozen=True, slots=True)
class _Debate:
    """A debate that goes on: who samples for each speaker, and what has been said."""

    problem: Problem
    samplers: Mapping[str, Sampler]
    seed: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Debate:
    """`choose_opponent` is None where the policy speaks for both sides and learns from both."""

    settings: config.Debate
    judge: Judge
    choose_opponent: Choice | None

    @classmethod
    def from_config(cls, section: config.Debate, frozen: FrozenModels) -> "Debate":
        """As it is evaluated: against the base, the one opponent that all checkpoints share."""

        def base(policy: Sampler, seed: int) -> Sampler:
            return replace(policy, client=frozen.client(None))

        return cls(section, make_judge(section.judge, frozen), base)

    def in_training(self, snapshots: Snapshots | None) -> "Debate":
        """As it is trained: against snapshots, or, where there are none, against itself."""
        return replace(self, choose_opponent=snapshots.choose if snapshots else None)

    @property
    def speakers(self) -> tuple[str, ...]:
        return BOTH_LEARN if self.choose_opponent is None else ONE_LEARNS[:1]

    def play(
        self,
        task: Task,
        problems: Sequence[Problem],
        num_rollouts: int,
        sampler: Sampler,
        seeds: Sequence[int],
    ) -> list[Group]:
        debates = self._propose(task, problems, num_rollouts, sampler, seeds)
        for round_number in range(1, self.settings.rounds + 1):
            debates = self._argue(task, debates, round_number)
        rollouts = self._judge(task, debates)
        starts = range(0, len(rollouts), num_rollouts)
        return [
            Group(problem, tuple(rollouts[start : start + num_rollouts]))
            for problem, start in zip(problems, starts, strict=True)
        ]

    @property
    def _names(self) -> tuple[str, str]:
        return BOTH_LEARN if self.choose_opponent is None else ONE_LEARNS

    def _propose(
        self,
        task: Task,
        problems: Sequence[Problem],
        num_rollouts: int,
        sampler: Sampler,
        seeds: Sequence[int],
    ) -> list[_Debate]:
        """Both speakers answer the task's prompt without knowing of each other."""
        pending = []
        for problem, seed in zip(problems, seeds, strict=True):
            prompt = task.prompt(problem)
            other = self.choose_opponent(sampler, seed) if self.choose_opponent else sampler
            samplers = dict(zip(self._names, (sampler, other), strict=True))
            answers = [
                samplers[name].submit(prompt, num_rollouts, derive_seed(seed, name))
                for name in self._names
            ]
            pending.append((problem, seed, samplers, prompt, answers))
        return [
            _Debate(problem, samplers, derive_seed(seed, g), self._turns(0, [prompt] * 2, pair))
            for problem, seed, samplers, prompt, answers in pending
            for g, pair in enumerate(zip(*(answer() for answer in answers), strict=True))
        ]

    def _argue(self, task: Task, debates: Sequence[_Debate], round_number: int) -> list[_Debate]:
        """Both speakers reply to what the other has said last, at the same time."""
        pending = []
        for debate in debates:
            prompts = self._prompts(task, debate)
            replies = [
                debate.samplers[name].submit(
                    prompt, 1, derive_seed(debate.seed, name, round_number)
                )
                for name, prompt in zip(self._names, prompts, strict=True)
            ]
            pending.append((debate, prompts, replies))
        return [
            replace(
                debate,
                turns=debate.turns
                + self._turns(round_number, prompts, [reply()[0] for reply in replies]),
            )
            for debate, prompts, replies in pending
        ]

    def _prompts(self, task: Task, debate: _Debate) -> list[tuple[int, ...]]:
        """Each speaker's conversation so far, its own speeches token by token as it sampled them,
        and a user's message that quotes the other's last speech."""
        first, second = debate.turns[-2:]
        prompts = []
        for own, other in ((first, second), (second, first)):
            text = fill(
                self.settings.argue_prompt,
                opponent=task.chat.quote(other.completion.text),
                question=task.question(debate.problem),
            )
            spoken = own.completion.tokens
            follow_up = task.chat.follow_up(text, spoken[-1])
            prompts.append((*own.prompt_tokens, *spoken, *follow_up))
        return prompts

    def _turns(
        self,
        round_number: int,
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[Completion],
    ) -> tuple[Turn, ...]:
        graded_round = 0 if self.settings.graded == "proposal" else self.settings.rounds
        said = zip(self._names, prompts, completions, strict=True)
        return tuple(Turn(*turn, is_graded=round_number == graded_round) for turn in said)

    def _judge(self, task: Task, debates: Sequence[_Debate]) -> list[Rollout]:
        rollouts = [Rollout(d.problem, d.turns, _task_rewards(task, d)) for d in debates]
        seeds = [debate.seed for debate in debates]
        verdicts = self.judge.judge(task, rollouts, self._names, seeds)
        return [
            self._rewarded(rollout, dict(zip(self._names, (verdict, -verdict), strict=True)))
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
        ]

    def _rewarded(self, rollout: Rollout, verdicts: Mapping[str, float]) -> Rollout:
        """r = w_verdict * verdict + w_task * (the task's reward), for each speaker who learns."""
        weights = self.settings.weights
        rewards = {}
        for name in self.speakers:
            of_task, verdict = rollout.rewards[name], verdicts[name]
            rewards[name] = replace(
                of_task,
                value=weights.verdict * verdict + weights.task * of_task.value,
                terms={"verdict": verdict, **of_task.terms},
            )
        return replace(rollout, rewards=rewards, verdicts=verdicts)


def _task_rewards(task: Task, debate: _Debate) -> dict[str, Reward]:
    return {
        turn.speaker: task.reward(debate.problem, turn.completion)
        for turn in debate.turns
        if turn.is_graded
    }
