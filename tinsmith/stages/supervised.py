"""Supervised warm-up: cross-entropy on the reference completions, the prompt masked out."""

import time
from collections.abc import Iterator

from tinsmith import config
from tinsmith.datums import cross_entropy_datum, with_trainer_logprobs
from tinsmith.metrics import completion_length_mean, training_metrics
from tinsmith.stages.context import StageContext, is_evaluation_due, validation_accuracy
from tinsmith.types import Completion, Problem, Sample, StepRecord, Turn

SPEAKER = "reference"


def train(
    options: config.Supervised, context: StageContext, first_step: int
) -> Iterator[StepRecord]:
    """One record per optimizer step, from `first_step` on."""
    client = context.training_client
    for step in range(first_step, options.steps):
        started_s = time.monotonic()
        problems = context.draw(options.batch_size, step)
        samples = [_demonstration(context, problem, p) for p, problem in enumerate(problems)]

        datums = [cross_entropy_datum(sample) for sample in samples]
        forward_backward = client.forward_backward(datums, "cross_entropy")
        optim_step = client.optim_step(context.adam_params())
        output, update = forward_backward.result(), optim_step.result()

        samples = with_trainer_logprobs(samples, output)
        metrics = training_metrics([samples], [(output, update)], context.learning_rate)
        metrics["completion_length_mean"] = completion_length_mean(samples)
        metrics["tokens_per_s"] = metrics["num_trained_tokens"] / (time.monotonic() - started_s)
        if is_evaluation_due(options, step):
            sampling_client = client.save_weights_and_get_sampling_client().result()
            metrics["validation_accuracy"] = validation_accuracy(context, options, sampling_client)
        yield StepRecord(step, metrics, tuple(samples))


def _demonstration(context: StageContext, problem: Problem, index: int) -> Sample:
    """The reference completion of a problem as a sample, every token of weight 1."""
    task = context.task
    tokens = task.reference(problem)
    completion = Completion(tokens, (), task.chat.decode(tokens), is_finished=True)
    turn = Turn(SPEAKER, task.prompt(problem), completion)
    return Sample(problem, index, 0, turn, None, (1.0,) * len(tokens))
