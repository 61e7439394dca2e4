"""The seam between what is trained on and how: everything that a task has to say."""

from typing import Protocol

from tinsmith.chat import Chat
from tinsmith.types import Completion, Problem, Reward


class Task(Protocol):
    """A kind of problem: its prompts, its reference completions, its rewards.

    A problem that it cannot ask or grade is refused by `prompt` or `reward` with a TinsmithError,
    whatever the completion; every problem is tried before the first is trained on.
    """

    @property
    def chat(self) -> Chat:
        """The format that made the prompts; it knows the stop tokens and how to decode."""
        ...

    def question(self, problem: Problem) -> str:
        """The message that asks the problem, with all that an answer has to heed; for judges."""
        ...

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        """The tokens that ask the problem, behind a system prompt where there is one."""
        ...

    def reference(self, problem: Problem) -> tuple[int, ...]:
        """The tokens of the right completion, its stop token included."""
        ...

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        """What a completion earns, whatever the model wrote: never an exception."""
        ...
