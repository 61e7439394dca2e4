"""What rejection sampling and GRPO share: one update of the policy on its own samples."""

import time
from collections.abc import Sequence

import tinker

from tinsmith.datums import with_trainer_logprobs
from tinsmith.metrics import kl_nats, sampling_metrics, share_zero_variance, training_metrics
from tinsmith.stages.context import StageContext
from tinsmith.types import Group, Sample


def update_policy(
    context: StageContext,
    started_s: float,
    groups: Sequence[Group],
    trained: Sequence[Sample],
    left_out: Sequence[Sample],
    datums: Sequence[tinker.Datum],
    loss: tinker.types.LossFnType,
) -> tuple[list[Sample], dict[str, float], tinker.SamplingClient]:
    """Train on `datums`, those of `trained`; everything is submitted before anything is awaited.

    Returns all samples, the trained ones with the trainer's log-probabilities; the metrics of the
    step, which began at `started_s` (`time.monotonic`); and a sampling client of the new policy.
    """
    client = context.training_client
    forward_backward = client.forward_backward(list(datums), loss)
    optim_step = client.optim_step(context.adam_params())
    upcoming_client = client.save_weights_and_get_sampling_client()
    output, update = forward_backward.result(), optim_step.result()
    sampling_client = upcoming_client.result()

    trained = with_trainer_logprobs(trained, output)
    samples = [*trained, *left_out]
    metrics = sampling_metrics(samples)
    metrics |= training_metrics(trained, output, update, context.learning_rate)
    metrics["kl_nats"] = kl_nats(trained)
    metrics["share_zero_variance"] = share_zero_variance(groups)
    metrics["tokens_per_s"] = metrics["num_sampled_tokens"] / (time.monotonic() - started_s)
    return samples, metrics, sampling_client
