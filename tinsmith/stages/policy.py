"""What rejection sampling and GRPO share: updates of the policy on a batch of its own samples."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tinker

from tinsmith.datums import DATUMS, with_trainer_logprobs
from tinsmith.metrics import kl_nats, sampling_metrics, share_zero_variance, training_metrics
from tinsmith.randomness import generator
from tinsmith.stages.context import StageContext
from tinsmith.types import Group, Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step sampled: its groups, the samples that teach something, and the others.

    `started_s` is when the step began, on the clock of `time.monotonic`.
    """

    step: int
    started_s: float
    groups: Sequence[Group]
    trained: Sequence[Sample]
    left_out: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Updated:
    """A batch after training: its samples, the trained ones with the trainer's log-probabilities;
    the step's metrics; and a client that samples from the new policy."""

    samples: tuple[Sample, ...]
    metrics: dict[str, float]
    sampling_client: tinker.SamplingClient


def update_policy(
    context: StageContext,
    batch: Batch,
    loss: tinker.types.LossFnType,
    loss_config: Mapping[str, float] | None = None,
    substeps: int = 1,
) -> Updated:
    """Train on the batch, in `substeps` optimizer steps on random parts of it; all of them are
    submitted before one is awaited. Without anything to train on, the policy stays as it is."""
    client = context.training_client
    parts = _parts(context, batch, substeps)
    futures = []
    for part in parts:
        datums = [DATUMS[loss](sample) for sample in part]
        config = dict(loss_config) if loss_config else None
        futures.append(
            (
                client.forward_backward(datums, loss, loss_fn_config=config),
                client.optim_step(context.adam_params()),
            )
        )
    upcoming_client = client.save_weights_and_get_sampling_client()
    results = [(output.result(), update.result()) for output, update in futures]
    sampling_client = upcoming_client.result()

    trained = [
        with_trainer_logprobs(part, output)
        for part, (output, _) in zip(parts, results, strict=True)
    ]
    samples = (*(sample for part in trained for sample in part), *batch.left_out)
    metrics = sampling_metrics(samples)
    if results:
        metrics |= training_metrics(trained, results, context.learning_rate)
        metrics["kl_nats"] = kl_nats(trained[0])
    metrics["share_zero_variance"] = share_zero_variance(batch.groups)
    metrics["tokens_per_s"] = metrics["num_sampled_tokens"] / (time.monotonic() - batch.started_s)
    return Updated(samples, metrics, sampling_client)


def _parts(context: StageContext, batch: Batch, substeps: int) -> list[list[Sample]]:
    """The trained samples, dealt out at random to at most `substeps` parts of even size."""
    if substeps == 1:
        return [list(batch.trained)] if batch.trained else []
    order = generator(context.seed, context.name, "substeps", batch.step)
    dealt = np.array_split(order.permutation(len(batch.trained)), substeps)
    return [[batch.trained[i] for i in sorted(part)] for part in dealt if len(part)]
