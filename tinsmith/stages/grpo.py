"""GRPO: sample groups, compare each rollout with its group, update on the differences."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from tinsmith import config
from tinsmith.datums import importance_sampling_datum
from tinsmith.errors import TinsmithError
from tinsmith.objectives.advantages import centre, standardise
from tinsmith.rollouts import Sampler, has_signal_P, rewards_P_G, samples_of
from tinsmith.stages.context import StageContext, heldout_accuracy, is_evaluation_due
from tinsmith.stages.policy import update_policy
from tinsmith.types import Group, Sample, StepRecord


def train(options: config.Grpo, context: StageContext, first_step: int) -> Iterator[StepRecord]:
    """One record per optimizer step, from `first_step` on; every step samples its own policy."""
    sampling_client = context.training_client.save_weights_and_get_sampling_client().result()
    for step in range(first_step, options.steps):
        started_s = time.monotonic()
        sampler = Sampler(sampling_client, context.task.chat, options.max_tokens)
        groups = _sample_groups(options, context, sampler, step)
        samples = _credit(options, context.paradigm.speakers, groups)
        trained = [sample for sample in samples if any(sample.advantages)]
        left_out = [sample for sample in samples if not any(sample.advantages)]
        _check_signal(options, step, trained, left_out)

        datums = [importance_sampling_datum(sample) for sample in trained]
        samples, metrics, sampling_client = update_policy(
            context, started_s, groups, trained, left_out, datums, "importance_sampling"
        )
        if is_evaluation_due(options, step):
            metrics["heldout_accuracy"] = heldout_accuracy(context, options, sampling_client)
        yield StepRecord(step, metrics, tuple(samples))


def _sample_groups(
    options: config.Grpo, context: StageContext, sampler: Sampler, step: int
) -> list[Group]:
    """The groups of a step, those without variance among them: their advantages are zero and they
    leave no trace in the batch. With `resample` each is followed by a group of another problem, for
    at most `max_resamples` rounds (dynamic sampling: Yu et al. 2025, DAPO, arXiv 2503.14476).
    """
    problems = context.draw(options.problems_per_step, step)
    groups = context.play(sampler, problems, options.samples_per_problem, step)
    if options.zero_variance == "drop":
        return groups
    for attempt in range(options.max_resamples):
        num_missing = options.problems_per_step - int(has_signal_P(groups).sum())
        if num_missing == 0:
            break
        problems = context.draw(num_missing, 0, "resample", step, attempt)
        groups += context.play(
            sampler, problems, options.samples_per_problem, step, "resample", attempt
        )
    return groups


def _credit(options: config.Grpo, speakers: Sequence[str], groups: Sequence[Group]) -> list[Sample]:
    """Every turn with its advantages, which are centred for each speaker apart."""
    advantages = standardise if options.normalise_by_std else centre
    return [
        sample
        for speaker in speakers
        for sample in samples_of(groups, speaker, advantages(rewards_P_G(groups, speaker)))
    ]


def _check_signal(
    options: config.Grpo, step: int, trained: Sequence[Sample], left_out: Sequence[Sample]
) -> None:
    if trained:
        return
    rewards = [sample.reward.value for sample in left_out if sample.reward is not None]
    raise TinsmithError(
        f"step {step} of stage {options.name} must have a non-zero advantage, but in each of its"
        f" groups all {options.samples_per_problem} rewards are equal (mean reward"
        f" {np.mean(rewards):.3g} over {len(rewards)} completions): if the problems are too hard,"
        " take easier ones or warm the model up; if they are solved, take harder ones or fewer"
        " steps; or raise samples_per_problem, or set zero_variance: resample"
    )
