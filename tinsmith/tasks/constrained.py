"""Constrained writing: instructions of length, words and form, each of which a program checks."""

from dataclasses import dataclass

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError
from tinsmith.tasks.asking import extra, refusal
from tinsmith.tasks.constraints import Constraints
from tinsmith.templates import fill
from tinsmith.types import Completion, Problem, Reward


@dataclass(frozen=True, slots=True)
class Constrained:
    """The weighted share of a problem's instructions that were followed; right is all of them.

    Each term is what one kind of instruction adds: weight / weights of the problem's, or 0.
    """

    chat: Chat
    settings: config.ConstrainedTask

    def question(self, problem: Problem) -> str:
        instructions = self._constraints(problem).instructions()
        template = self.settings.prompt_template
        return fill(template, question=problem.question, instructions=instructions)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.prompt(self.question(problem), self.settings.system_prompt)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.reply(problem.answer)

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        followed = dict(self._constraints(problem).followed(completion.text))
        weights = {name: getattr(self.settings.weights, name) for name in followed}
        total = sum(weights.values())
        if not total:
            raise refusal(problem, f"one of {', '.join(followed)} must have a weight above 0")
        terms = {name: weights[name] * is_so / total for name, is_so in followed.items()}
        return Reward(sum(terms.values()), terms, all(followed.values()))

    def _constraints(self, problem: Problem) -> Constraints:
        values = extra(problem, "constraints")
        try:
            return config.check_section(Constraints, values, "constraints")
        except TinsmithError as error:
            raise refusal(problem, str(error)) from None
