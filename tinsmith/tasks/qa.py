"""Question answering: one reference answer, and a grader that says when a completion matches it."""

from dataclasses import dataclass

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.graders import GRADERS, Grader
from tinsmith.types import Completion, Problem, Reward


@dataclass(frozen=True, slots=True)
class Qa:
    """Reward 1 for a completion that the grader accepts, 0 for any other."""

    chat: Chat
    grader: Grader
    prompt_template: str = "{question}"
    system_prompt: str | None = None

    @classmethod
    def from_config(cls, section: config.QaTask, chat: Chat) -> "Qa":
        return cls(chat, GRADERS[section.grader], section.prompt_template, section.system_prompt)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        text = self.prompt_template.replace("{question}", problem.question)
        return self.chat.prompt(text, self.system_prompt)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.reply(problem.answer)

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        is_right = self.grader(completion.text, problem.answer)
        return Reward(float(is_right), {"correct": float(is_right)}, is_right)
