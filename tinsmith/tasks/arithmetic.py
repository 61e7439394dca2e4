"""Arithmetic: the completion has to be the number and nothing else."""

from dataclasses import dataclass

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.asking import in_template
from tinsmith.types import Completion, Problem, Reward


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Reward 1 for the exact number, ended by the model itself, and 0 for anything else."""

    chat: Chat
    settings: config.ArithmeticTask

    def question(self, problem: Problem) -> str:
        return in_template(self.settings, problem.question)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.prompt(self.question(problem), self.settings.system_prompt)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.reply(problem.answer)

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        is_right = completion.is_finished and completion.text.strip() == problem.answer
        return Reward(float(is_right), {"correct": float(is_right)}, is_right)
