"""Each stage on the real server: what it learns, what it records, and that it repeats itself."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pytest
import tinker

from tests.stages.conftest import FirstTokenIsEven
from tinsmith import config
from tinsmith.checkpoints import fetch_weights
from tinsmith.errors import TinsmithError
from tinsmith.stages import STAGES, StageContext
from tinsmith.stages.context import validation_accuracy
from tinsmith.types import Problem, StepRecord

MakeContext = Callable[..., StageContext]

STEPS = 6
SUPERVISED = config.Supervised(
    kind="supervised", steps=STEPS, batch_size=6, eval_every=3, eval_problems=4, max_tokens=4
)
REJECTION = config.Rejection(
    kind="rejection",
    steps=STEPS,
    problems_per_step=4,
    samples_per_problem=4,
    eval_every=3,
    eval_problems=4,
    max_tokens=4,
)
RAFT_PLUS_PLUS = REJECTION.model_copy(update={"loss": "importance_sampling", "select": "best"})
GRPO = config.Grpo(
    kind="grpo",
    steps=STEPS,
    problems_per_step=4,
    samples_per_problem=4,
    eval_every=3,
    eval_problems=4,
    max_tokens=4,
)
RESAMPLING = GRPO.model_copy(update={"zero_variance": "resample", "samples_per_problem": 2})
EVERY_STAGE = pytest.mark.parametrize(
    "options",
    [SUPERVISED, REJECTION, RAFT_PLUS_PLUS, GRPO, RESAMPLING],
    ids=["supervised", "rejection", "raft++", "grpo", "grpo-resampling"],
)


def train(options: config.OwnStage, context: StageContext, first_step: int = 0) -> list[StepRecord]:
    return list(STAGES[options.kind](options, context, first_step))


@EVERY_STAGE
def test_a_stage_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(
    options: config.OwnStage,
    make_context: MakeContext,
    service: tinker.ServiceClient,
    tmp_path: Path,
):
    straight = make_context()
    train(options, straight)
    expected = fetch_weights(straight.training_client, "final", tmp_path / "straight")

    cut = make_context()
    list(islice(STAGES[options.kind](options, cut, 0), 4))
    state = cut.training_client.save_state("step-4").result().path
    client = service.create_training_client_from_state_with_optimizer(state).result()
    train(options, make_context(client), first_step=4)
    assert fetch_weights(client, "final", tmp_path / "resumed") == expected


@EVERY_STAGE
def test_a_stage_records_every_step_and_its_validation_accuracy_when_due(
    options: config.OwnStage, make_context: MakeContext
):
    records = train(options, make_context())
    assert [record.step for record in records] == list(range(STEPS))
    evaluated = [record.step for record in records if "validation_accuracy" in record.metrics]
    assert evaluated == [2, 5]
    assert all(record.metrics["learning_rate"] == 0.01 for record in records)


@dataclass(frozen=True, slots=True)
class Remembers(FirstTokenIsEven):
    """Which problems it was asked for."""

    asked: list[str] = field(default_factory=list)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        self.asked.append(problem.id)
        return FirstTokenIsEven.prompt(self, problem)


def test_a_stage_is_validated_on_the_last_heldout_problems(make_context: MakeContext):
    """The evaluation takes the first."""
    context = make_context()
    task = Remembers(context.task.chat)
    client = context.reference_client()
    accuracy = validation_accuracy(replace(context, task=task), SUPERVISED, client)
    assert task.asked == [problem.id for problem in context.heldout[-4:]]
    assert accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_supervised_raises_the_likelihood_of_the_references(make_context: MakeContext):
    losses = [record.metrics["loss"] for record in train(SUPERVISED, make_context())]
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("options", [REJECTION, GRPO], ids=["rejection", "grpo"])
def test_sampling_stages_raise_their_reward(
    options: config.Rejection | config.Grpo, make_context: MakeContext
):
    longer = options.model_copy(update={"steps": 9, "eval_every": 9, "problems_per_step": 8})
    records = train(longer, make_context(learning_rate=0.02))
    rewards = [record.metrics["reward_mean"] for record in records]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15


@pytest.mark.parametrize("options", [RAFT_PLUS_PLUS, GRPO, RESAMPLING])
def test_sampler_and_trainer_give_the_same_log_probabilities(
    options: config.Rejection | config.Grpo, make_context: MakeContext
):
    for record in train(options, make_context()):
        assert abs(record.metrics["kl_nats"]) < 1e-5
        for sample in record.samples:
            if sample.trainer_logprobs is not None:
                sampled = sample.turn.completion.logprobs
                assert sample.trainer_logprobs == pytest.approx(sampled, abs=1e-5)


def test_grpo_trains_on_all_rollouts_of_groups_with_variance_and_on_no_others(
    make_context: MakeContext,
):
    for record in train(GRPO, make_context()):
        groups: dict[int, list[float]] = {}
        for sample in record.samples:
            assert sample.reward is not None
            groups.setdefault(sample.group, []).append(sample.reward.value)
            varies = sample.advantages[0] != 0
            assert (sample.trainer_logprobs is not None) == varies
        flat = sum(len(set(rewards)) == 1 for rewards in groups.values())
        assert record.metrics["share_zero_variance"] == pytest.approx(flat / len(groups))
        assert len(groups) == GRPO.problems_per_step


def test_resampling_replaces_groups_without_variance(make_context: MakeContext):
    records = train(RESAMPLING, make_context())
    for record in records:
        groups = {sample.group for sample in record.samples}
        trained = {s.group for s in record.samples if s.trainer_logprobs is not None}
        most = RESAMPLING.problems_per_step
        assert len(trained) <= most
        assert len(groups) >= most
    assert any(len({s.group for s in record.samples}) > 4 for record in records)


def test_rejection_trains_on_right_completions_with_weight_one(make_context: MakeContext):
    for record in train(REJECTION, make_context()):
        for sample in record.samples:
            assert sample.reward is not None
            assert set(sample.advantages) == {float(sample.reward.is_right)}
            assert (sample.trainer_logprobs is not None) == sample.reward.is_right


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (REJECTION, r"none of the 16 that were sampled passes select: correct"),
        (GRPO, r"all 4 rewards are equal \(mean reward 0 over 16 completions\)"),
        (RESAMPLING, r"all 2 rewards are equal \(mean reward 0 over 32 completions\)"),
    ],
)
def test_a_step_without_signal_is_an_error_that_says_why(
    options: config.OwnStage, reason: str, make_context: MakeContext
):
    with pytest.raises(TinsmithError, match=f"step 0 of stage {options.name} must .*{reason}"):
        train(options, make_context(has_signal=False))
