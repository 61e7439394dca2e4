"""GRPO's choices on the real server: what each does to the advantages, the steps and the policy."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tinker

from tinsmith import config
from tinsmith.checkpoints import fetch_weights
from tinsmith.stages import STAGES, StageContext
from tinsmith.types import StepRecord

MakeContext = Callable[..., StageContext]
PLAIN = config.Grpo(
    kind="grpo",
    steps=4,
    problems_per_step=4,
    samples_per_problem=4,
    eval_every=4,
    eval_problems=2,
    max_tokens=4,
)


def grpo(**changes: object) -> config.Grpo:
    return config.Grpo.model_validate(PLAIN.model_dump() | changes)


def train(options: config.Grpo, context: StageContext) -> list[StepRecord]:
    return list(STAGES["grpo"](options, context, 0))


def weights_after(options: config.Grpo, context: StageContext, folder: Path) -> str:
    train(options, context)
    return fetch_weights(context.training_client, "final", folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_penalty": 0.1},
        {"truncate_ratio": 2.0},
        {"substeps": 2},
        {"normalise_by": "sequence"},
        {"loss": "ppo", "substeps": 2},
        {"loss": "cispo"},
        {"loss": "gspo"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_stage_with_an_option_that_is_cut_off_ends_with_the_weights_of_one_that_was_not(
    changes: dict, make_context: MakeContext, service: tinker.ServiceClient, tmp_path: Path
):
    options = grpo(**changes)
    expected = weights_after(options, make_context(), tmp_path / "straight")
    cut = make_context()
    list(islice(STAGES["grpo"](options, cut, 0), 2))
    state = cut.training_client.save_state("step-2").result().path
    client = service.create_training_client_from_state_with_optimizer(state).result()
    list(STAGES["grpo"](options, make_context(client), 2))
    assert fetch_weights(client, "final", tmp_path / "resumed") == expected


def test_the_policy_parts_from_its_reference_only_by_training(make_context: MakeContext):
    records = train(grpo(kl_penalty=0.1), make_context(learning_rate=0.02))
    distances = [record.metrics["kl_reference_nats"] for record in records]
    assert distances[0] == pytest.approx(0.0, abs=1e-5)
    assert distances[-1] > 0.01


def test_the_kl_penalty_keeps_the_policy_closer_to_its_reference(make_context: MakeContext):
    loose, tight = (
        train(grpo(kl_penalty=c, steps=8), make_context(learning_rate=0.02))[-1]
        for c in (1e-9, 3.0)
    )
    assert tight.metrics["kl_reference_nats"] < loose.metrics["kl_reference_nats"]


def test_a_sampler_that_agrees_with_the_trainer_is_not_reweighted(make_context: MakeContext):
    for record in train(grpo(truncate_ratio=2.0), make_context()):
        assert record.metrics["share_truncated"] == 0.0
        for sample in record.samples:
            if sample.old_logprobs is not None:
                assert sample.old_logprobs == pytest.approx(sample.trainer_logprobs, abs=1e-6)
                assert len(set(np.round(sample.advantages, 4))) == 1


def test_substeps_take_as_many_optimizer_steps_on_all_of_the_batch(make_context: MakeContext):
    context = make_context()
    taken = []
    original = context.training_client.optim_step

    def counting(*args: object, **kwargs: object) -> object:
        taken.append(args)
        return original(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    context.training_client.optim_step = counting  # pyright: ignore[reportAttributeAccessIssue]
    records = train(grpo(substeps=3, steps=2), context)
    assert len(taken) == 6
    for record in records:
        trained = [s for s in record.samples if s.trainer_logprobs is not None]
        assert (
            len(trained) == record.metrics["num_datums"] == sum(any(s.advantages) for s in trained)
        )


def test_normalising_by_sequence_gives_every_sequence_the_same_weight(make_context: MakeContext):
    plain = train(grpo(steps=1), make_context())[0]
    normalised = train(grpo(steps=1, normalise_by="sequence"), make_context())[0]
    num_trained = plain.metrics["num_datums"]
    for before, after in zip(plain.samples, normalised.samples, strict=True):
        if before.trainer_logprobs is not None:
            expected = before.advantages[0] / num_trained
            assert sum(after.advantages) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["ppo", "cispo", "gspo"])
def test_on_policy_every_loss_takes_the_step_of_importance_sampling(
    loss: str, make_context: MakeContext
):
    """At a ratio of 1 nothing is clipped, and the gradients of all four are A grad log p."""
    plain = train(grpo(steps=1), make_context())[0]
    other = train(grpo(steps=1, loss=loss), make_context())[0]
    assert other.metrics["share_clipped"] == 0.0
    assert other.metrics["grad_norm"] == pytest.approx(plain.metrics["grad_norm"], rel=1e-4)


def test_tight_bounds_clip_the_tokens_of_a_second_substep(make_context: MakeContext):
    options = grpo(loss="ppo", substeps=2, clip_low=0.999, clip_high=1.001, steps=1)
    record = train(options, make_context(learning_rate=0.02))[0]
    assert 0.0 < record.metrics["share_clipped"] <= 0.5 + 1 / record.metrics["num_datums"]


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_batch_is_sampled_by_the_policy_of_so_many_steps_before(
    staleness: int, make_context: MakeContext
):
    records = train(grpo(max_staleness=staleness), make_context(learning_rate=0.02))
    # Step 0 is always on-policy; those sampled along with it are by the policy of step 0 too.
    assert abs(records[0].metrics["kl_nats"]) < 1e-5
    assert all(abs(record.metrics["kl_nats"]) > 1e-4 for record in records[1:])


def test_sampling_ahead_repeats_itself_bit_for_bit(make_context: MakeContext, tmp_path: Path):
    options = grpo(max_staleness=1)
    one, other = (
        weights_after(options, make_context(), tmp_path / name) for name in ("one", "other")
    )
    assert one == other


def test_a_step_without_signal_is_skipped_where_it_may_be(
    make_context: MakeContext, tmp_path: Path
):
    context = make_context(has_signal=False)
    before = fetch_weights(context.training_client, "before", tmp_path / "before")
    records = train(grpo(no_signal="skip"), context)
    assert len(records) == PLAIN.steps
    assert all("loss" not in record.metrics for record in records)
    assert fetch_weights(context.training_client, "after", tmp_path / "after") == before
