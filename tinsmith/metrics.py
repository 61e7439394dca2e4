"""The numbers of a step, from its samples."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import tinker

from tinsmith.rollouts import has_signal_P
from tinsmith.types import Group, Sample


def sampling_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """What was sampled: rewards by term, lengths, and the entropy of the sampler in nats a token.

    Samples without a reward are a frozen opponent's, and count for nothing.

    H ~ mean_t(-log q_t) over the sampled tokens: an unbiased estimate of the mean entropy of the
    distributions that the tokens were drawn from, at the temperature they were drawn at.
    """
    samples = [sample for sample in samples if sample.reward is not None]
    terms: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        assert sample.reward is not None
        for name, value in sample.reward.terms.items():
            terms[name].append(value)
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    completions = [sample.turn.completion for sample in samples]
    logprobs = np.concatenate([completion.logprobs for completion in completions])
    return {
        "reward_mean": _mean([reward.value for reward in rewards]),
        **{f"reward_{name}_mean": _mean(values) for name, values in terms.items()},
        "share_right": _mean([reward.is_right for reward in rewards]),
        "share_parsed": _mean([reward.is_parsed for reward in rewards]),
        "share_finished": _mean([completion.is_finished for completion in completions]),
        "completion_length_mean": completion_length_mean(samples),
        "num_sampled_tokens": len(logprobs),
        "entropy_nats": float(-logprobs.mean()),
    }


def share_zero_variance(groups: Sequence[Group]) -> float:
    """The share of groups in which no speaker's rewards differ."""
    return 1 - _mean(has_signal_P(groups).tolist())


def completion_length_mean(samples: Sequence[Sample]) -> float:
    """Tokens of a completion, its stop token counted."""
    return _mean([len(sample.turn.completion.tokens) for sample in samples])


def kl_nats(samples: Sequence[Sample]) -> float:
    """KL(q || p) ~ mean_t(log q_t - log p_t) over the trained tokens, in nats a token.

    q is the sampler that drew them and p the trainer before its update. It is zero when both
    compute the same; the estimate of a small one can come out negative. At a sampling temperature
    other than 1 it also holds the difference that the temperature makes.
    """
    sampler = np.concatenate([sample.turn.completion.logprobs for sample in samples])
    trainer = np.concatenate([_trainer_logprobs(sample) for sample in samples])
    return float((sampler - trainer).mean())


def training_metrics(
    parts: Sequence[Sequence[Sample]],
    results: Sequence[tuple[tinker.ForwardBackwardOutput, tinker.OptimStepResponse]],
    learning_rate: float,
) -> dict[str, float]:
    """What the optimizer steps on the parts of a batch did; the loss is per trained token.

    Names that the backend gives its own metrics of an optimizer step, such as `grad_norm`, stay as
    they are; those of several steps are averaged.
    """
    samples = [sample for part in parts for sample in part]
    num_tokens = sum(len(sample.turn.completion.tokens) for sample in samples)
    updates = [update.metrics or {} for _, update in results]
    return {
        "loss": sum(output.metrics["loss:sum"] for output, _ in results) / num_tokens,
        "learning_rate": learning_rate,
        "num_datums": len(samples),
        "num_trained_tokens": num_tokens,
        **{name: _mean([update[name] for update in updates]) for name in updates[0]},
    }


def share_clipped(samples: Sequence[Sample], loss: str, low: float, high: float) -> float:
    """The share of trained tokens whose ratio, as the loss takes it, is outside its bounds.

    That is p / q of the trainer to the sampler, or to the trainer before the update where the
    sample says so; with gspo the geometric mean over the completion.
    """
    ratios = [_loss_ratios(sample, loss) for sample in samples]
    ratio = np.concatenate(ratios)
    return float(((ratio < low) | (ratio > high)).mean())


def _loss_ratios(sample: Sample, loss: str) -> np.ndarray:
    old = sample.old_logprobs or sample.turn.completion.logprobs
    log_ratio_T = np.subtract(_trainer_logprobs(sample), old)
    if loss == "gspo":
        log_ratio_T = np.full_like(log_ratio_T, log_ratio_T.mean())
    return np.exp(log_ratio_T)


def _trainer_logprobs(sample: Sample) -> tuple[float, ...]:
    assert sample.trainer_logprobs is not None, "only trained samples have the trainer's view"
    return sample.trainer_logprobs


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
