"""Intervals and estimators for evaluation results. All intervals are 95 %."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

Z_95 = 1.959963984540054
NUM_RESAMPLES = 10_000
MAX_BLOCK = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson(num_right: int, num_trials: int) -> Interval:
    """A share with its score interval (Wilson 1927), with z = 1.96:

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    share = num_right / num_trials
    squared = Z_95**2 / num_trials
    middle = (share + squared / 2) / (1 + squared)
    radius = Z_95 * math.sqrt(share * (1 - share) / num_trials + squared / (4 * num_trials))
    radius /= 1 + squared
    return Interval(share, max(0.0, middle - radius), min(1.0, middle + radius))


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """The mean of independent values with its percentile bootstrap interval (Efron 1979).

    For an accuracy the values are the problems' shares of right samples, for a paired difference
    each problem's change: problems are what is drawn again, their samples stay together.
    """
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    block = max(1, MAX_BLOCK // len(data))
    means = [
        data[rng.integers(len(data), size=(min(block, NUM_RESAMPLES - start), len(data)))].mean(1)
        for start in range(0, NUM_RESAMPLES, block)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high))


def clustered_mean(
    clusters: Iterable[Sequence[float]], seed: int, unit: str
) -> tuple[Interval, str]:
    """The mean of the clusters' means, with its interval and the method's name.

    A cluster is all that was drawn for one `unit`, such as a problem's samples, which are not
    independent of each other. Where each cluster is wholly right (1) or wholly wrong (0), the
    interval is Wilson's over the clusters, which has a width even if they all agree; else it is by
    bootstrap over them.
    """
    means = [fmean(values) for values in clusters]
    if {*means} <= {0.0, 1.0}:
        return wilson(round(sum(means)), len(means)), "wilson"
    return bootstrap_mean(means, seed), f"bootstrap over {unit}"


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that one of k samples is right, estimated without bias
    from n samples of which c are right (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
