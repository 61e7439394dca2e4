"""Debates on the real server: what a model judge makes of them, and what stages learn from them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import tinker

from tests.stages.conftest import FirstTokenIsEven
from tests.stages.test_stages import train
from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError
from tinsmith.frozen import FrozenModels
from tinsmith.judges import Judge, make_judge
from tinsmith.paradigms import Debate, make_paradigm, put_in_training
from tinsmith.stages import StageContext
from tinsmith.types import Completion, Problem, Rollout, Turn

SPEAKERS = ("first", "second")
PROMPT = "{question}\n{debate}\nWho, {first} or {second}?"
SAID = [("4", "5", "it is four", "no"), ("yes", "yes", "", "ab"), ("1 + 1", "2", "3", "2 + 1")]
REJECTION: dict[str, Any] = {"kind": "rejection", "select": "winner"}
GRPO: dict[str, Any] = {"kind": "grpo"}


@pytest.fixture
def frozen(service: tinker.ServiceClient, chat: Chat) -> FrozenModels:
    return FrozenModels(service, "llama", chat)


def heard(chat: Chat, said: Sequence[str]) -> Rollout:
    """A debate in which the two speakers say these texts in turn."""
    turns = [
        Turn(SPEAKERS[i % 2], (1,), Completion(chat.encode(text), (), text, is_finished=True))
        for i, text in enumerate(said)
    ]
    return Rollout(Problem("p", "1 + 3", "4"), tuple(turns), {})


def exchanged(said: Sequence[str]) -> tuple[str, ...]:
    """What is said when each speaker says what the other one said."""
    return tuple(said[i ^ 1] for i in range(len(said)))


def model_judge(frozen: FrozenModels, **changes: Any) -> Any:
    section = config.ModelJudge(kind="model", prompt=PROMPT).model_copy(update=changes)
    return make_judge(section, frozen)


def test_exchanging_the_speakers_changes_a_model_judges_mean_verdict_by_nothing(
    frozen: FrozenModels,
):
    judge, chat = model_judge(frozen), frozen.chat
    task = FirstTokenIsEven(chat)
    debates = [heard(chat, said) for said in SAID]
    swapped = [heard(chat, exchanged(said)) for said in SAID]
    verdicts = judge.judge(task, debates, SPEAKERS, [0] * 3)
    back = [-verdict for verdict in judge.judge(task, swapped, SPEAKERS, [0] * 3)]
    assert back == verdicts
    assert np.mean(back) - np.mean(verdicts) == 0
    assert all(0 < abs(verdict) < 1 for verdict in verdicts)
    equals = heard(chat, ("4", "4", "yes", "yes"))
    assert judge.judge(task, [equals], SPEAKERS, [0]) == [0]


def test_a_model_judge_weighs_the_verdict_tokens_in_both_orders(frozen: FrozenModels):
    chat = frozen.chat
    said = SAID[0]
    client = frozen.client(None)

    def lead(texts: Sequence[str]) -> float:
        """P(the first verdict) - P(the second one), where the first speaker says texts[0]."""
        debate = "\n\n".join(f"{'AB'[i % 2]}: {text}" for i, text in enumerate(texts))
        prompt = chat.prompt(f"1 + 3\n{debate}\nWho, A or B?")
        logprobs = []
        for name in "AB":
            tokens = tinker.ModelInput.from_ints([*prompt, *chat.encode(name)])
            logprobs.append(client.compute_logprobs(tokens).result()[-1])
        of_first, of_second = np.exp(np.array(logprobs, dtype=np.float64))
        return (of_first - of_second) / (of_first + of_second)

    # The model does prefer a position, which is what the second order is for.
    first, second = lead(said), -lead(exchanged(said))
    assert abs(first - second) > 1e-3
    task = FirstTokenIsEven(chat)
    verdict = model_judge(frozen).judge(task, [heard(chat, said)], SPEAKERS, [0])[0]
    assert verdict == pytest.approx((first + second) / 2, abs=1e-5)


def test_a_verdict_that_is_no_single_token_is_refused(frozen: FrozenModels):
    with pytest.raises(TinsmithError, match=r"verdict_tokens must each be a single token .*'over"):
        model_judge(frozen, verdict_tokens=("A", "over there"))


def test_a_judge_that_the_service_does_not_know_is_refused(frozen: FrozenModels):
    judge = model_judge(frozen, checkpoint="tinker://nobody:train:0/sampler_weights/x")
    with pytest.raises(TinsmithError, match="loading tinker://nobody"):
        judge.judge(FirstTokenIsEven(frozen.chat), [heard(frozen.chat, SAID[0])], SPEAKERS, [0])


def debating(context: StageContext, frozen: FrozenModels, **changes: Any) -> StageContext:
    """The same surroundings, in which the policy debates with itself."""
    values = {
        "kind": "debate",
        "judge": {"kind": "ground_truth"},
        "opponent": {"kind": "self"},
        "argue_prompt": "{opponent}",
        "graded": "proposal",
    }
    section = config.check_section(config.Debate, values | changes, "test")
    paradigm = make_paradigm(section, frozen)
    return replace(context, paradigm=put_in_training(paradigm, None), heldout_paradigm=paradigm)


def stage(values: dict[str, Any], **changes: Any) -> Any:
    common = {
        "steps": 3,
        "problems_per_step": 4,
        "samples_per_problem": 4,
        "eval_problems": 4,
        "max_tokens": 4,
    }
    kinds = {"rejection": config.Rejection, "grpo": config.Grpo}
    return config.check_section(kinds[values["kind"]], common | values | changes, "test")


def test_rejection_learns_from_the_winners_speeches(
    make_context: Callable[..., StageContext], frozen: FrozenModels
):
    for record in train(stage(REJECTION), debating(make_context(), frozen)):
        assert len(record.samples) == 4 * 4 * 2
        for sample in record.samples:
            assert sample.verdict is not None
            assert set(sample.advantages) == {float(sample.verdict > 0)}
            assert (sample.trainer_logprobs is not None) == (sample.verdict > 0)


@pytest.mark.parametrize("learn_from", ["all", "winners"])
def test_grpo_centres_the_reward_of_each_speaker(
    learn_from: str, make_context: Callable[..., StageContext], frozen: FrozenModels
):
    weights = {"verdict": 0.0, "task": 1.0} if learn_from == "winners" else {}
    context = debating(make_context(), frozen, weights=weights)
    for record in train(stage(GRPO, learn_from=learn_from), context):
        rewards: dict[tuple[int, str], dict[int, float]] = {}
        for sample in record.samples:
            assert sample.reward is not None
            of_group = rewards.setdefault((sample.group, sample.turn.speaker), {})
            of_group[sample.rollout] = sample.reward.value
        for sample in record.samples:
            assert sample.reward is not None
            assert sample.verdict is not None
            mean = np.mean(list(rewards[sample.group, sample.turn.speaker].values()))
            expected = sample.reward.value - mean
            if learn_from == "winners" and sample.verdict <= 0:
                expected = 0.0
            assert sample.advantages == pytest.approx([expected] * len(sample.advantages))


class Draws:
    """A judge who prefers nobody."""

    def judge(self, task: Any, debates: Sequence[Rollout], *_: Any) -> list[float]:
        return [0.0] * len(debates)


def test_debates_that_nobody_wins_are_no_signal_for_winners_and_the_error_says_so(
    make_context: Callable[..., StageContext], frozen: FrozenModels
):
    context = debating(make_context(), frozen, weights={"verdict": 0.0, "task": 1.0})
    drawn = replace(cast(Debate, context.paradigm), judge=cast(Judge, Draws()))
    with pytest.raises(TinsmithError, match="with learn_from: winners nobody who won any"):
        train(stage(GRPO, learn_from="winners"), replace(context, paradigm=drawn))


def test_sampler_and_trainer_agree_on_every_speech(
    make_context: Callable[..., StageContext], frozen: FrozenModels
):
    """The speeches behind the first are scored behind the very tokens that they were sampled on."""
    context = debating(make_context(), frozen, rounds=2)
    trained = [
        sample
        for record in train(stage(GRPO, steps=2), context)
        for sample in record.samples
        if sample.trainer_logprobs is not None
    ]
    assert {sample.place for sample in trained} == set(range(6))
    for sample in trained:
        sampled = sample.turn.completion.logprobs
        assert sample.trainer_logprobs == pytest.approx(sampled, abs=1e-5)
