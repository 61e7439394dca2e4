"""Rejection sampling: sample groups, keep what is right or best, raise its likelihood."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.objectives.selection import SELECTIONS
from tinsmith.rollouts import (
    Sampler,
    is_right_P_G,
    rewards_P_G,
    samples_of,
    samples_of_others,
    verdicts_P_G,
)
from tinsmith.stages.context import StageContext, is_evaluation_due, validation_accuracy
from tinsmith.stages.policy import Batch, update_policy
from tinsmith.types import Group, Sample, StepRecord


def train(
    options: config.Rejection, context: StageContext, first_step: int
) -> Iterator[StepRecord]:
    """One record per optimizer step, from `first_step` on; every step samples its own policy."""
    sampling_client = context.training_client.save_weights_and_get_sampling_client().result()
    for step in range(first_step, options.steps):
        started_s = time.monotonic()
        sampler = Sampler(
            sampling_client, context.task.chat, options.max_tokens, options.temperature, step
        )
        problems = context.draw(options.problems_per_step, step)
        groups = context.play(sampler, problems, options.samples_per_problem, step)
        samples = _select(options, context.paradigm.speakers, groups)
        kept = [sample for sample in samples if any(sample.advantages)]
        left_out = [sample for sample in samples if not any(sample.advantages)]
        batch = Batch(step, started_s, groups, kept, left_out)
        if not kept and options.no_signal == "stop":
            raise TinsmithError(_no_signal(options, batch))
        updated = update_policy(context, batch, options.loss)
        sampling_client = updated.sampling_client

        metrics = updated.metrics
        if is_evaluation_due(options, step):
            metrics["validation_accuracy"] = validation_accuracy(context, options, sampling_client)
        yield StepRecord(step, metrics, updated.samples)


def _select(
    options: config.Rejection, speakers: Sequence[str], groups: Sequence[Group]
) -> list[Sample]:
    """Every turn, with the weight 1 on the tokens of what is kept and 0 on the others'."""
    select = SELECTIONS[options.select]
    samples = []
    for speaker in speakers:
        measures = (rewards_P_G, is_right_P_G, verdicts_P_G)
        weights_P_G = select(*(measure(groups, speaker) for measure in measures))
        samples += samples_of(groups, speaker, weights_P_G)
    return samples + samples_of_others(groups, speakers)


def _no_signal(options: config.Rejection, batch: Batch) -> str:
    mean = np.mean([sample.reward.value for sample in batch.left_out if sample.reward is not None])
    return (
        f"step {batch.step} of stage {options.name} must keep at least one completion, but none of"
        f" the {len(batch.left_out)} that were sampled passes select: {options.select} (mean reward"
        f" {mean:.3g}): warm the model up with a supervised stage, take easier problems, or"
        " raise samples_per_problem; or set no_signal: skip, to go on without an update"
    )
