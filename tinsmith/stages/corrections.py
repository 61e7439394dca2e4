"""What GRPO may do to the advantages of a batch before it is trained on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tinker

from tinsmith import config
from tinsmith.datums import cross_entropy_datum, with_trainer_logprobs
from tinsmith.objectives.policy_losses import kl_penalties, token_weights, truncated_ratio
from tinsmith.stages.context import StageContext
from tinsmith.stages.policy import Batch
from tinsmith.types import Sample


def corrected(
    options: config.Grpo, context: StageContext, batch: Batch
) -> tuple[Batch, dict[str, float]]:
    """The batch with its advantages penalised, reweighted and normalised as the options say, and
    what was measured on the way."""
    samples, metrics = list(batch.trained), dict[str, float]()
    if not samples:
        return batch, metrics
    if options.kl_penalty > 0:
        samples, metrics["kl_reference_nats"] = _penalised(options, context, samples)
    if options.truncate_ratio is not None:
        samples, metrics["share_truncated"] = _reweighted(options.truncate_ratio, context, samples)
    lengths = [len(sample.turn.completion.tokens) for sample in samples]
    weights = token_weights(lengths, options.normalise_by)
    samples = [_times(sample, weight) for sample, weight in zip(samples, weights, strict=True)]
    return replace(batch, trained=samples), metrics


def _penalised(
    options: config.Grpo, context: StageContext, samples: Sequence[Sample]
) -> tuple[list[Sample], float]:
    """Each token's advantage less its share of the KL divergence from the reference policy."""
    reference = context.reference_client()
    futures = [reference.compute_logprobs(_whole(sample)) for sample in samples]
    p_ref = [
        _of_completion(sample, future.result())
        for sample, future in zip(samples, futures, strict=True)
    ]
    q = [sample.turn.completion.logprobs for sample in samples]
    kl_nats = np.concatenate([np.subtract(*pair) for pair in zip(q, p_ref, strict=True)]).mean()
    added = kl_penalties(q, p_ref, options.kl_penalty)
    penalised = [
        replace(sample, advantages=tuple(np.add(sample.advantages, added_T).tolist()))
        for sample, added_T in zip(samples, added, strict=True)
    ]
    return penalised, float(kl_nats)


def _reweighted(
    limit: float, context: StageContext, samples: Sequence[Sample]
) -> tuple[list[Sample], float]:
    """Each token's advantage times its truncated ratio of trainer to sampler; the loss then
    compares the policy with the trainer as it is before the update."""
    datums = [cross_entropy_datum(sample) for sample in samples]
    scored = with_trainer_logprobs(
        samples, context.training_client.forward(datums, "cross_entropy").result()
    )
    reweighted, cut = [], []
    for sample in scored:
        trainer = sample.trainer_logprobs
        assert trainer is not None
        ratio_T = truncated_ratio(trainer, sample.turn.completion.logprobs, limit)
        cut.extend(ratio_T >= limit)
        advantages = tuple(np.multiply(sample.advantages, ratio_T).tolist())
        reweighted.append(replace(sample, advantages=advantages, old_logprobs=trainer))
    return reweighted, float(np.mean(cut))


def _times(sample: Sample, weight: float) -> Sample:
    return replace(sample, advantages=tuple(weight * a for a in sample.advantages))


def _whole(sample: Sample) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints([*sample.turn.prompt_tokens, *sample.turn.completion.tokens])


def _of_completion(sample: Sample, logprobs: Sequence[float | None]) -> tuple[float, ...]:
    found = logprobs[len(sample.turn.prompt_tokens) :]
    assert None not in found, "only the first token of a sequence has no log-probability"
    return tuple(value for value in found if value is not None)
