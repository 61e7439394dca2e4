"""A stage's surroundings on a tiny random model behind the real server."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tinker

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.paradigms import make_paradigm
from tinsmith.stages import StageContext
from tinsmith.types import Completion, Problem, Reward

PROBLEMS = tuple(Problem(str(i), f"say {i}", str(i % 10)) for i in range(24))


@dataclass(frozen=True, slots=True)
class FirstTokenIsEven:
    """A task that a random model solves half of the time: reward 1 for an even first token."""

    chat: Chat

    def question(self, problem: Problem) -> str:
        return problem.question

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.prompt(problem.question)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.reply(problem.answer)

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        is_right = completion.tokens[0] % 2 == 0
        return Reward(float(is_right), {"even": float(is_right)}, is_right)


@dataclass(frozen=True, slots=True)
class NothingIsRight(FirstTokenIsEven):
    """A task without a learning signal."""

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        return Reward(0.0, {}, is_right=False)


@pytest.fixture(scope="session")
def chat(llama_dir: Path) -> Chat:
    return Chat.load(llama_dir)


@pytest.fixture
def make_context(service: tinker.ServiceClient, chat: Chat) -> Callable[..., StageContext]:
    """A context around a training client; a new adapter unless one is given."""

    def make(
        client: tinker.TrainingClient | None = None,
        *,
        has_signal: bool = True,
        learning_rate: float = 0.01,
    ) -> StageContext:
        client = client or service.create_lora_training_client("llama", rank=4, seed=3).result()
        return StageContext(
            name="stage",
            seed=5,
            learning_rate=learning_rate,
            training_client=client,
            reference_client=lambda: service.create_sampling_client(base_model="llama").result(),
            task=FirstTokenIsEven(chat) if has_signal else NothingIsRight(chat),
            paradigm=make_paradigm(config.SingleTurn()),
            heldout_paradigm=make_paradigm(config.SingleTurn()),
            problems=PROBLEMS[:16],
            heldout=PROBLEMS[16:],
        )

    return make
