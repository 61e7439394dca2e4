"""Mathematics: right is what has the value of the reference answer, however it is written."""

import re
from dataclasses import dataclass, field
from decimal import Decimal

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.asking import in_template
from tinsmith.tasks.graders import last_number
from tinsmith.tasks.math_verifier import MathVerifier
from tinsmith.types import Completion, Problem, Reward

FINAL, BOX = "####", "\\boxed{"
PLAIN_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
AROUND_A_NUMBER = " \t\n$.*"


@dataclass(frozen=True, slots=True)
class Math:
    """The weighted sum of `correct`, an answer of equal value, and `format`, one that is marked.

    An answer is marked by a box (`\\boxed{3}`) or by #### before it, as in GSM8K (Cobbe et al.
    2021). What is not marked is searched for the last number or expression.
    """

    chat: Chat
    settings: config.MathTask
    verifier: MathVerifier = field(default_factory=MathVerifier)

    def question(self, problem: Problem) -> str:
        return in_template(self.settings, problem.question)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.prompt(self.question(problem), self.settings.system_prompt)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.reply(problem.answer)

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        expected = marked_answer(problem.answer) or problem.answer
        written = marked_answer(completion.text)
        is_right, is_parsed = self._grade(expected, written, completion.text)
        weights = self.settings.weights
        terms = {
            "correct": weights.correct * is_right,
            "format": weights.format * (written is not None),
        }
        return Reward(sum(terms.values()), terms, is_right, is_parsed)

    def _grade(self, expected: str, written: str | None, text: str) -> tuple[bool, bool]:
        """Whether the answer is right, and whether there is one. Numbers are compared at once;
        anything else goes to the verifier."""
        number = _number(expected)
        if written is None:
            last = last_number(text)
            if number is not None or last is None:
                return last is not None and last == number, last is not None
        elif number is not None and (value := _number(written)) is not None:
            return value == number, True
        asked = text if written is None else f"{BOX}{written}}}"
        verdict = self.verifier.compare(f"{BOX}{expected}}}", asked, self.settings.timeout_s)
        return verdict.is_equal, verdict.is_parsed or written is not None


def marked_answer(text: str) -> str | None:
    """What stands in the last complete box, or behind the last #### on its line; the later one."""
    at_final, at_box = text.rfind(FINAL), text.rfind(BOX)
    if at_box > at_final and (inside := _inside_braces(text, at_box + len(BOX))) is not None:
        return inside.strip() or None
    if at_final < 0:
        return None
    lines = text[at_final + len(FINAL) :].strip().splitlines()
    return lines[0].strip() if lines else None


def _inside_braces(text: str, start: int) -> str | None:
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def _number(text: str) -> Decimal | None:
    bare = text.strip(AROUND_A_NUMBER).replace("\\$", "").replace("\N{MINUS SIGN}", "-")
    return Decimal(bare.replace(",", "")) if PLAIN_NUMBER.fullmatch(bare) else None
