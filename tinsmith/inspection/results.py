"""What an Inspect log says of a model: each scorer's mean over the samples, with its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinsmith.errors import TinsmithError
from tinsmith.randomness import derive_seed
from tinsmith.statistics import clustered_mean

# What Inspect's scorers say of an answer, as numbers: correct, partly, incorrect, none given.
LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}


def summarise(log: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The scores of a log that ended well, by the scorer's name; refused where it did not."""
    name = f"the Inspect task {log['eval']['task']}"
    if log.get("status") != "success":
        said = (log.get("error") or {}).get("message", "it was cut off")
        raise TinsmithError(f"{name} failed: {said}")
    samples = log.get("samples") or []
    scores_errors = log["eval"].get("config", {}).get("score_on_error")
    for sample in samples:
        # A scorer may have been done when another failed.
        if sample.get("error") and not (scores_errors and sample.get("scores")):
            raise TinsmithError(
                f"{name} must answer every sample, so that all checkpoints are asked the same; on"
                f" sample {sample['id']!r}, epoch {sample['epoch']}, it failed:"
                f" {sample['error']['message']}"
            )
    scorers = sorted({name for sample in samples for name in sample.get("scores") or {}})
    if not scorers:
        raise TinsmithError(f"{name} must score its samples")
    return {scorer: _interval(scorer, samples, seed) for scorer in scorers}


def _interval(scorer: str, samples: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The epochs of a sample count as one: its mean."""
    values: dict[int | str, list[float]] = {}
    num_unscored = 0
    for sample in samples:
        score = (sample.get("scores") or {}).get(scorer)
        value = None if score is None else _number(scorer, score["value"])
        if value is None:
            num_unscored += 1
        else:
            values.setdefault(sample["id"], []).append(value)
    if not values:
        raise TinsmithError(f"the scorer {scorer} must give a score to at least one sample")
    interval, method = clustered_mean(
        values.values(), derive_seed(seed, "inspect", scorer), "samples"
    )
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "interval": method,
        "num_samples": len(values),
        "epochs": max(sample["epoch"] for sample in samples),
        "num_unscored": num_unscored,
    }


def _number(scorer: str, value: Any) -> float | None:
    """None for the NaN by which a scorer says that it could not tell."""
    number = LETTERS.get(value) if isinstance(value, str) else value
    if isinstance(number, float) and math.isnan(number):
        return None
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise TinsmithError(
            f"the scorer {scorer} must give numbers, true and false, or Inspect's C, P, I and N,"
            f" got {value!r}"
        )
    return float(number)
