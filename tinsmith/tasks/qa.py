"""Question answering: one reference answer, and a grader that says when a completion matches it."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.asking import extra, in_template, refusal
from tinsmith.tasks.graders import GRADERS, is_parsed, is_pattern, normalised
from tinsmith.types import Completion, Problem, Reward

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Qa:
    """Reward 1 for a completion that the grader accepts, 0 for any other."""

    chat: Chat
    settings: config.QaTask

    def question(self, problem: Problem) -> str:
        lines = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(self._choices(problem))]
        return in_template(self.settings, "\n".join([problem.question, *lines]))

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.prompt(self.question(problem), self.settings.system_prompt)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.reply(self._answer(problem))

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        answer = self._answer(problem)
        is_right = GRADERS[self.settings.grader](completion.text, answer)
        choices = self._choices(problem)
        if choices and not is_right:  # a choice may also be written out
            is_right = normalised(completion.text, choices[LETTERS.index(answer)])
        parsed = is_right or is_parsed(self.settings.grader, completion.text)
        return Reward(float(is_right), {"correct": float(is_right)}, is_right, parsed)

    def _answer(self, problem: Problem) -> str:
        """The reference answer; of multiple choice, its letter."""
        answer = problem.answer
        if self.settings.grader == "regular_expression" and not is_pattern(answer):
            raise refusal(problem, f"its answer must be a regular expression, got {answer!r}")
        if self.settings.grader != "multiple_choice":
            return answer
        choices = self._choices(problem)
        known = LETTERS[: len(choices)] if choices else LETTERS
        names = {
            "letter": list(known),
            "text": list(choices),
            "index": [str(place) for place in range(len(choices))],
        }[self.settings.answers]
        if answer not in names:
            raise refusal(
                problem,
                f"its answer must be the {self.settings.answers} of a choice (task.answers), one of"
                f" {', '.join(names) or 'choices, but it has none'}, got {answer!r}",
            )
        return known[names.index(answer)]

    def _choices(self, problem: Problem) -> Sequence[str]:
        """The texts of the field `choices`; none where the question names them itself."""
        if self.settings.grader != "multiple_choice":
            return ()
        choices = extra(problem, "choices")
        if choices is None:
            return ()
        is_list = isinstance(choices, list) and 2 <= len(choices) <= len(LETTERS)
        if not is_list or not all(isinstance(choice, str | int | float) for choice in choices):
            raise refusal(problem, f"choices must be a list of 2 to 26 texts, got {choices!r}")
        return [str(choice) for choice in choices]
