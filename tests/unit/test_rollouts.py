"""Rollouts: what is asked of the sampler, in which order, and what comes back."""

import threading
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import tinker

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.paradigms import make_paradigm
from tinsmith.rollouts import Sampler, is_right_P_G, rewards_P_G, samples_of
from tinsmith.tasks import Task, make_task
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.types import Completion, Group, Problem, Reward

CHAT = Chat(make_tokenizer())
TASK = make_task(config.ArithmeticTask(kind="arithmetic"), CHAT)
PARADIGM = make_paradigm(config.SingleTurn())
PROBLEMS = [Problem("a", "1+1", "2"), Problem("b", "1+2", "3")]
ANSWERS = ("2", "3")


class FakeSamplingClient:
    """Answers "2" first and "3" next to whatever it is asked, and remembers what happened."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def answer(self, request: Future[None]) -> None:
        request.set_result(None)

    def sample(
        self,
        prompt: tinker.ModelInput,
        num_samples: int,
        sampling_params: tinker.SamplingParams,
    ) -> "FakeFuture":
        self.events.append(("asked", (prompt.to_ints(), num_samples, sampling_params)))
        return FakeFuture(self)


class FakeFuture:
    def __init__(self, client: FakeSamplingClient) -> None:
        self._client = client
        self._answer: Future[None] = Future()
        client.answer(self._answer)

    def future(self) -> Future[None]:
        return self._answer

    def result(self) -> tinker.SampleResponse:
        self._client.events.append(("awaited", None))
        return tinker.SampleResponse([self._sequence(answer) for answer in ANSWERS])

    def _sequence(self, answer: str) -> tinker.SampledSequence:
        tokens = CHAT.reply(answer)
        return tinker.SampledSequence(
            stop_reason="stop",
            sequence_id=answer,
            tokens_np=np.array(tokens, dtype=np.int32),
            logprobs_np=np.full(len(tokens), -0.5, dtype=np.float32),
        )


def play(client: FakeSamplingClient) -> list[Group]:
    sampler = Sampler(cast(tinker.SamplingClient, client), CHAT, max_tokens=4, temperature=0.5)
    return PARADIGM.play(TASK, PROBLEMS, 2, sampler, seeds=[11, 12])


def test_all_requests_are_sent_before_any_is_awaited():
    client = FakeSamplingClient()
    play(client)
    assert [event for event, _ in client.events] == ["asked", "asked", "awaited", "awaited"]


def test_what_is_answered_early_is_graded_while_other_groups_are_sampled():
    class SlowAtFirst(FakeSamplingClient):
        """Answers the first request when the second's completions have been graded."""

        def answer(self, request: Future[None]) -> None:
            super().answer(request) if slow else slow.append(request)

    class Grading:
        def prompt(self, problem: Problem) -> tuple[int, ...]:
            return TASK.prompt(problem)

        def reward(self, problem: Problem, completion: Completion) -> Reward:
            graded.append(problem.id)
            if graded == ["b", "b"]:
                slow[0].set_result(None)
            return TASK.reward(problem, completion)

    slow: list[Future[None]] = []
    graded: list[str] = []
    client = cast(tinker.SamplingClient, SlowAtFirst())
    sampler = Sampler(client, CHAT, max_tokens=4, temperature=0.5)
    found: list[list[Group]] = []
    player = threading.Thread(
        target=lambda: found.append(
            PARADIGM.play(cast(Task, Grading()), PROBLEMS, 2, sampler, seeds=[11, 12])
        ),
        daemon=True,
    )
    player.start()
    player.join(30)
    assert graded == ["b", "b", "a", "a"]
    assert [group.problem.id for group in found[0]] == ["a", "b"]


def test_a_group_is_one_request_with_its_own_seed_and_stop_tokens():
    client = FakeSamplingClient()
    play(client)
    prompt, num_samples, params = client.events[1][1]
    assert prompt == list(TASK.prompt(PROBLEMS[1]))
    assert num_samples == 2
    assert (params.seed, params.max_tokens, params.temperature) == (12, 4, 0.5)
    assert tuple(params.stop) == CHAT.stop_token_ids


def test_completions_keep_the_sampled_tokens_and_their_logprobs():
    completion = play(FakeSamplingClient())[0].rollouts[1].turns[0].completion
    assert completion.tokens == CHAT.reply("3")
    assert completion.logprobs == (-0.5, -0.5)
    assert (completion.text, completion.is_finished) == ("3", True)


def test_rewards_have_a_row_per_problem_and_a_column_per_rollout():
    groups = play(FakeSamplingClient())
    (speaker,) = PARADIGM.speakers
    assert rewards_P_G(groups, speaker).tolist() == [[1, 0], [0, 1]]
    assert is_right_P_G(groups, speaker).tolist() == [[True, False], [False, True]]


def test_every_token_of_a_turn_gets_the_advantage_of_its_rollout():
    groups = play(FakeSamplingClient())
    samples = samples_of(groups, PARADIGM.speakers[0], np.array([[0.5, -0.5], [-0.25, 0.25]]))
    assert [(s.group, s.rollout) for s in samples] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [s.advantages for s in samples][:2] == [(0.5, 0.5), (-0.5, -0.5)]
