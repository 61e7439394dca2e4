"""GRPO: sample groups, compare each rollout with its group, update on the differences."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import tinker

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.metrics import share_clipped
from tinsmith.objectives.advantages import centre, standardise
from tinsmith.objectives.policy_losses import loss_config
from tinsmith.rollouts import (
    Sampler,
    has_signal_P,
    rewards_P_G,
    samples_of,
    samples_of_others,
    verdicts_P_G,
)
from tinsmith.stages.ahead import batches_ahead
from tinsmith.stages.context import StageContext, is_evaluation_due, validation_accuracy
from tinsmith.stages.corrections import corrected
from tinsmith.stages.policy import Batch, update_policy
from tinsmith.types import Group, Sample, StepRecord


def train(options: config.Grpo, context: StageContext, first_step: int) -> Iterator[StepRecord]:
    """One record per optimizer step, from `first_step` on; every step samples its own policy, or
    one that is at most `max_staleness` steps older."""
    bounds = loss_config(options.loss, options.clip_low, options.clip_high)
    sampling_client = context.training_client.save_weights_and_get_sampling_client().result()

    def collect(client: tinker.SamplingClient, step: int) -> Batch:
        return _collect(options, context, client, step)

    with batches_ahead(collect, first_step, options) as batches:
        for step in range(first_step, options.steps):
            batch = batches.next(sampling_client)
            if not batch.trained and options.no_signal == "stop":
                raise TinsmithError(_no_signal(options, batch))
            batch, extra = corrected(options, context, batch)
            updated = update_policy(context, batch, options.loss, bounds, options.substeps)
            sampling_client = updated.sampling_client

            metrics = updated.metrics | extra
            if bounds and batch.trained:
                trained = updated.samples[: len(batch.trained)]
                metrics["share_clipped"] = share_clipped(trained, options.loss, *bounds.values())
            if is_evaluation_due(options, step):
                metrics["validation_accuracy"] = validation_accuracy(
                    context, options, sampling_client
                )
            yield StepRecord(step, metrics, updated.samples)


def _collect(
    options: config.Grpo, context: StageContext, client: tinker.SamplingClient, step: int
) -> Batch:
    """The batch of a step, sampled by `client`."""
    started_s = time.monotonic()
    sampler = Sampler(client, context.task.chat, options.max_tokens, step=step)
    groups = _sample_groups(options, context, sampler, step)
    samples = _credit(options, context.paradigm.speakers, groups)
    trained = [sample for sample in samples if any(sample.advantages)]
    left_out = [sample for sample in samples if not any(sample.advantages)]
    return Batch(step, started_s, groups, trained, left_out)


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
    """Every turn with its advantages, which are centred for each speaker apart; with `learn_from:
    winners` those of speakers whom the judge does not prefer are zero."""
    advantages = standardise if options.normalise_by_std else centre
    samples = []
    for speaker in speakers:
        advantages_P_G = advantages(rewards_P_G(groups, speaker))
        if options.learn_from == "winners":
            advantages_P_G = advantages_P_G * (verdicts_P_G(groups, speaker) > 0)
        samples += samples_of(groups, speaker, advantages_P_G)
    return samples + samples_of_others(groups, speakers)


def _no_signal(options: config.Grpo, batch: Batch) -> str:
    rewards = [sample.reward.value for sample in batch.left_out if sample.reward is not None]
    if options.learn_from == "winners" and has_signal_P(batch.groups).any():
        return (
            f"step {batch.step} of stage {options.name} must have a non-zero advantage, but with"
            f" learn_from: winners nobody who won any of its {len(batch.groups)} groups' debates"
            " was rewarded otherwise than the mean of the group: set learn_from: all, or raise"
            " samples_per_problem; or set no_signal: skip, to go on without an update"
        )
    return (
        f"step {batch.step} of stage {options.name} must have a non-zero advantage, but in each of"
        f" its groups all {options.samples_per_problem} rewards are equal (mean reward"
        f" {np.mean(rewards):.3g} over {len(rewards)} completions): if the problems are too hard,"
        " take easier ones or warm the model up; if they are solved, take harder ones or fewer"
        " steps; or raise samples_per_problem, or set zero_variance: resample; or set"
        " no_signal: skip, to go on without an update"
    )
