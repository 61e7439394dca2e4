"""What an Inspect log says of a model: each scorer's mean over the samples, with its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinsmith.errors import TinsmithError
from tinsmith.randomness import derive_seed
from tinsmith.statistics import bootstrap_mean, wilson

# What Inspect's scorers say of an answer, as numbers: correct, partly, incorrect, none given.
LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}


def summarise(log: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The scores of a log that ended well, by the scorer's name; refused where it did not."""
    if log.get("status") != "success":
        said = (log.get("error") or {}).get("message", "it was cut off")
        raise TinsmithError(f"the Inspect task {log['eval']['task']} failed: {said}")
    samples = log.get("samples") or []
    scorers = sorted({name for sample in samples for name in sample.get("scores") or {}})
    if not scorers:
        raise TinsmithError(f"the Inspect task {log['eval']['task']} must score its samples")
    return {name: _interval(name, samples, seed) for name in scorers}


def _interval(scorer: str, samples: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    scores = [sample["scores"] for sample in samples]
    values = [_number(scorer, score[scorer]["value"]) for score in scores if scorer in score]
    if {*values} <= {0.0, 1.0}:
        interval, method = wilson(round(sum(values)), len(values)), "wilson"
    else:
        interval = bootstrap_mean(values, derive_seed(seed, "inspect", scorer))
        method = "bootstrap over samples"
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "interval": method,
        "num_samples": len(values),
    }


def _number(scorer: str, value: Any) -> float:
    number = LETTERS.get(value) if isinstance(value, str) else value
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise TinsmithError(
            f"the scorer {scorer} must give numbers, true and false, or Inspect's C, P, I and N,"
            f" got {value!r}"
        )
    return float(number)
