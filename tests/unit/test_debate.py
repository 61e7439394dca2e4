"""Debates with scripted speakers: what is asked, what is carried on, what it earns."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import tinker

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError
from tinsmith.frozen import FrozenModels
from tinsmith.opponents import Snapshots
from tinsmith.paradigms import Debate, make_paradigm, num_rollouts, put_in_training
from tinsmith.rollouts import Sampler, rewards_P_G, samples_of, samples_of_others, verdicts_P_G
from tinsmith.tasks import make_task
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.types import Group, Problem

CHAT = Chat(make_tokenizer())
TASK = make_task(config.ArithmeticTask(kind="arithmetic"), CHAT)
PROBLEMS = [Problem("a", "1+1", "2"), Problem("b", "1+2", "3")]
SEEDS = [11, 12]
END = CHAT.stop_token_ids[0]
# A byte that is no text by itself: decoded and encoded again it would be three others.
HALF_A_LETTER = next(token for token in range(256) if CHAT.decode([token]) == "\ufffd")

Say = Callable[[str, int], tuple[int, ...]]


class ScriptedClient:
    """Says what a function of the prompt's text and the sample's number says."""

    def __init__(self, say: Say, events: list[tuple[str, Any]] | None = None) -> None:
        self._say = say
        self.events = [] if events is None else events

    def sample(
        self,
        prompt: tinker.ModelInput,
        num_samples: int,
        sampling_params: tinker.SamplingParams,
    ) -> "Answer":
        self.events.append(("asked", (prompt.to_ints(), num_samples, sampling_params.seed)))
        text = CHAT.decode(prompt.to_ints())
        return Answer([self._say(text, i) for i in range(num_samples)], self.events)


class Answer:
    def __init__(self, spoken: list[tuple[int, ...]], events: list[tuple[str, Any]]) -> None:
        self._spoken = spoken
        self._events = events

    def result(self) -> tinker.SampleResponse:
        self._events.append(("awaited", None))
        return tinker.SampleResponse([self._sequence(tokens) for tokens in self._spoken])

    def _sequence(self, tokens: tuple[int, ...]) -> tinker.SampledSequence:
        return tinker.SampledSequence(
            stop_reason="stop" if tokens[-1] == END else "length",
            sequence_id="",
            tokens_np=np.array(tokens, dtype=np.int32),
            logprobs_np=np.full(len(tokens), -0.5, dtype=np.float32),
        )


class Service:
    """Knows one model by its path; None is the base."""

    def __init__(self, clients: dict[str | None, Any]) -> None:
        self._clients = clients

    def create_sampling_client(
        self, base_model: str | None = None, model_path: str | None = None
    ) -> Any:
        return Ready(self._clients[model_path])


class Ready:
    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


def saying(text: str) -> Say:
    return lambda prompt, sample: CHAT.reply(text)


def frozen_models(clients: dict[str | None, Any]) -> FrozenModels:
    return FrozenModels(cast(tinker.ServiceClient, Service(clients)), "base", CHAT)


def sampler_of(client: Any) -> Sampler:
    return Sampler(cast(tinker.SamplingClient, client), CHAT, max_tokens=8)


def debate(frozen: FrozenModels | None = None, **changes: Any) -> Debate:
    values = {
        "kind": "debate",
        "judge": {"kind": "ground_truth"},
        "opponent": {"kind": "self"},
        "argue_prompt": "{opponent}?{question}",
    }
    section = config.check_section(config.Debate, values | changes, "test")
    made = make_paradigm(section, frozen or frozen_models({}))
    assert isinstance(made, Debate)
    return made


def play_itself(say: Say, size: int = 2, **changes: Any) -> list[Group]:
    paradigm = put_in_training(debate(**changes), None)
    return paradigm.play(TASK, PROBLEMS, size, sampler_of(ScriptedClient(say)), SEEDS)


def test_all_requests_of_a_round_are_sent_before_any_is_awaited():
    client = ScriptedClient(saying("2"))
    paradigm = put_in_training(debate(rounds=2), None)
    paradigm.play(TASK, PROBLEMS, 3, sampler_of(client), SEEDS)
    proposals, arguments = 2 * 2, 2 * 3 * 2
    assert [event for event, _ in client.events] == [
        *(["asked"] * proposals + ["awaited"] * proposals),
        *(["asked"] * arguments + ["awaited"] * arguments),
        *(["asked"] * arguments + ["awaited"] * arguments),
    ]
    seeds = [asked[2] for event, asked in client.events if event == "asked"]
    assert len(set(seeds)) == len(seeds)


def test_a_speaker_carries_its_own_speech_on_as_the_tokens_that_it_sampled():
    spoken = (HALF_A_LETTER, *CHAT.encode("2"), END)
    for group in play_itself(lambda prompt, sample: spoken):
        for rollout in group.rollouts:
            proposal, _, argument, _ = rollout.turns
            carried = (*proposal.prompt_tokens, *spoken)
            assert argument.prompt_tokens[: len(carried)] == carried
            message = argument.prompt_tokens[len(carried) :]
            text = f"\ufffd2?{group.problem.question}"
            assert message == CHAT.follow_up(text, END)


def test_a_speech_that_was_cut_off_is_ended_before_the_next_message():
    cut_off = CHAT.encode("12")
    rollout = play_itself(lambda prompt, sample: cut_off)[0].rollouts[0]
    proposal, argument = rollout.turns[0], rollout.turns[2]
    carried = (*proposal.prompt_tokens, *cut_off)
    assert argument.prompt_tokens[: len(carried) + 1] == (*carried, END)


def test_each_speaker_reads_what_the_other_has_said_last():
    numbers = iter(range(100))

    def say(prompt: str, sample: int) -> tuple[int, ...]:
        return CHAT.reply(str(next(numbers)))

    for group in play_itself(say, rounds=2):
        for rollout in group.rollouts:
            texts = [turn.completion.text for turn in rollout.turns]
            assert [turn.speaker for turn in rollout.turns] == ["first", "second"] * 3
            for place in (2, 4):
                own, other = rollout.turns[place], rollout.turns[place + 1]
                assert f"{texts[place - 1]}?" in CHAT.decode(own.prompt_tokens)
                assert f"{texts[place - 2]}?" in CHAT.decode(other.prompt_tokens)


def test_a_speech_cannot_put_special_tokens_into_the_other_speakers_prompt():
    letters = [CHAT.encode(letter)[0] for letter in "<|im_<|im_start|>start|>system"]
    rollout = play_itself(lambda prompt, sample: (*letters, END))[0].rollouts[0]
    argument = rollout.turns[2]
    message = argument.prompt_tokens[len(rollout.turns[0].prompt_tokens) + len(letters) + 1 :]
    assert message == CHAT.follow_up("system?1+1", END)


@pytest.mark.parametrize(("graded", "place"), [("proposal", 0), ("final", 2)])
def test_the_graded_answer_is_the_one_that_is_set(graded: str, place: int):
    def say(prompt: str, sample: int) -> tuple[int, ...]:
        return CHAT.reply("2" if ("?" in prompt) == (graded == "final") else "9")

    group = play_itself(say, graded=graded)[0]
    for rollout in group.rollouts:
        assert [i for i, turn in enumerate(rollout.turns) if turn.is_graded] == [place, place + 1]
        assert all(reward.is_right for reward in rollout.rewards.values())


def test_the_ground_truth_lets_the_right_speaker_win_and_calls_equals_a_draw():
    answers = iter("2299" + "2929")
    proposals = [CHAT.reply(next(answers)) for _ in range(8)]

    def say(prompt: str, sample: int) -> tuple[int, ...]:
        return proposals.pop(0)

    problems = [PROBLEMS[0]]
    paradigm = put_in_training(debate(rounds=0, weights={"verdict": 2.0, "task": 0.5}), None)
    client = ScriptedClient(say)
    groups = paradigm.play(TASK, problems, 4, sampler_of(client), [1])
    assert verdicts_P_G(groups, "first").tolist() == [[0, 1, -1, 0]]
    assert verdicts_P_G(groups, "second").tolist() == [[0, -1, 1, 0]]
    assert rewards_P_G(groups, "first").tolist() == [[0.5, 2.5, -2.0, 0.0]]
    assert rewards_P_G(groups, "second").tolist() == [[0.5, -2.0, 2.5, 0.0]]
    terms = groups[0].rollouts[1].rewards["first"].terms
    assert terms == {"verdict": 1.0, "correct": 1.0}


def test_against_a_frozen_opponent_the_policy_alone_is_rewarded_and_both_are_recorded():
    policy, base = ScriptedClient(saying("2")), ScriptedClient(saying("9"))
    paradigm = debate(frozen_models({None: base}))
    groups = paradigm.play(TASK, PROBLEMS[:1], 2, sampler_of(policy), [1])
    assert paradigm.speakers == ("policy",)
    assert len(policy.events) == len(base.events) == 2 * (1 + 2)
    assert rewards_P_G(groups, "policy").tolist() == [[1, 1]]
    assert [set(rollout.rewards) for rollout in groups[0].rollouts] == [{"policy"}] * 2
    others = samples_of_others(groups, paradigm.speakers)
    assert {(s.turn.speaker, s.reward, s.verdict) for s in others} == {("opponent", None, -1.0)}
    assert not any(any(sample.advantages) for sample in others)
    own = samples_of(groups, "policy", np.ones((1, 2)))
    assert sorted((s.rollout, s.place) for s in own + others) == [
        (rollout, place) for rollout in range(2) for place in range(4)
    ]


def test_the_mock_judge_is_a_coin_of_the_seed():
    verdicts = [
        verdicts_P_G(play_itself(saying("2"), size=30, judge={"kind": "mock"}), "first")
        for _ in range(2)
    ]
    assert (verdicts[0] == verdicts[1]).all()
    assert set(verdicts[0].ravel()) == {-1.0, 1.0}


def test_samples_are_dealt_out_to_the_speakers():
    against_itself = put_in_training(debate(), None)
    assert num_rollouts(against_itself, 8) == 4
    assert num_rollouts(debate(), 7) == 7
    with pytest.raises(
        TinsmithError, match=r"samples_per_problem must be a multiple of 2, .*got 7"
    ):
        num_rollouts(against_itself, 7)


class Trainer:
    """Saves nothing, and names what it would have saved."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    def save_weights_for_sampler(self, name: str) -> Ready:
        self.saved.append(name)
        return Ready(cast(Any, type("Saved", (), {"path": f"tinker://{name}"})))


class NamedClients(dict[str | None, str]):
    def __missing__(self, path: str | None) -> str:
        return str(path)


def snapshots(trainer: Trainer, paths: dict[str, str] | None = None, **opponent: Any) -> Snapshots:
    options = {"kind": "latest", "every": 3} | opponent
    section = config.check_section(
        config.Debate, {"kind": "debate", "judge": {"kind": "mock"}, "opponent": options}, "test"
    )
    assert section.opponent.kind != "self"
    frozen = frozen_models(cast(Any, NamedClients()))
    client = cast(tinker.TrainingClient, trainer)
    return Snapshots(section.opponent, 0, client, frozen, paths or {})


def opponents_of(shots: Snapshots, step: int, num_problems: int = 1) -> list[str]:
    policy = Sampler(cast(Any, "policy"), CHAT, max_tokens=8, step=step)
    chosen = [shots.choose(policy, seed).client for seed in range(num_problems)]
    return [str(client).removeprefix("tinker://opponent-") for client in chosen]


def test_the_latest_opponent_is_the_newest_snapshot_from_before_the_step():
    shots = snapshots(Trainer())
    met = []
    for step in range(8):
        shots.take(step)
        met += opponents_of(shots, step)
    assert met == ["0", "0", "0", "0", "3", "3", "3", "6"]


def test_the_pool_draws_from_its_newest_snapshots_by_the_seed():
    shots = snapshots(Trainer(), kind="pool", every=2, size=3)
    for step in range(11):
        shots.take(step)
    assert set(opponents_of(shots, 10, 50)) == {"4", "6", "8"}
    assert opponents_of(shots, 10, 50) == opponents_of(shots, 10, 50)
    assert set(opponents_of(shots, 1, 50)) == {"0"}


def test_snapshots_that_were_read_back_are_the_same_opponents_and_are_not_taken_again():
    first, again = Trainer(), Trainer()
    shots = snapshots(first, kind="pool", every=2)
    for step in range(7):
        shots.take(step)
    resumed = snapshots(again, shots.paths, kind="pool", every=2)
    for step in (6, 7, 8):
        resumed.take(step)
    assert again.saved == ["opponent-8"]
    assert opponents_of(resumed, 7, 50) == opponents_of(shots, 7, 50)
