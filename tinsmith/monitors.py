"""Watching a stage's metrics: a warning, or the end of the stage, as the config says."""

import logging
from collections.abc import Mapping, Sequence

from tinsmith.config import Monitor
from tinsmith.errors import TinsmithError

ADVICE = {
    "kl_nats": "sampler and trainer disagree about the same tokens: see what"
    " scripts/check_local_sampling_logprobs.py says of the model, and take a wider dtype",
    "entropy_nats": "the policy is close to always writing the same: lower learning_rate, add a"
    " kl_penalty, raise clip_high, or stop earlier",
    "share_finished": "completions are cut off before they end and earn nothing: raise max_tokens,"
    " or ask for shorter answers in the prompt",
    "share_parsed": "most completions hold no answer that the grader finds: say in the prompt how"
    " to write it, or warm the model up with a supervised stage",
    "share_zero_variance": "most groups teach nothing, since their rollouts earn the same: take"
    " easier or harder problems, raise samples_per_problem, or set zero_variance: resample",
    "share_right": "see docs/debugging.md for what to look at in the transcript",
    "reward_mean": "see docs/debugging.md for what to look at in the transcript",
    "completion_length_mean": "see in the transcript what completions are filled with, and whether"
    " the reward pays for length",
    "grad_norm": "lower learning_rate, and look for datums of extreme weight in the step's file",
}
logger = logging.getLogger(__name__)


class Watch:
    """Counts, for each monitor, the steps in a row beyond its bound."""

    def __init__(self, monitors: Sequence[Monitor], stage: str) -> None:
        self._monitors = monitors
        self._stage = stage
        self._streaks = [0] * len(monitors)

    def recall(self, metrics: Mapping[str, float]) -> None:
        """Count an earlier step, of which everything has been said already."""
        for index, monitor in enumerate(self._monitors):
            is_beyond = _is_beyond(monitor, metrics)
            self._streaks[index] = self._streaks[index] + 1 if is_beyond else 0

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Count a step; warn, or raise TinsmithError, where a streak has become long enough."""
        self.recall(metrics)
        for monitor, streak in zip(self._monitors, self._streaks, strict=True):
            if streak == 0 or streak % monitor.for_steps:
                continue
            said = self._describe(monitor, step, metrics[monitor.metric])
            if monitor.then == "stop":
                raise TinsmithError(
                    f"{said} (monitors: then: warn would let the stage go on; its last saved step"
                    " is kept)"
                )
            logger.warning(said)

    def _describe(self, monitor: Monitor, step: int, value: float) -> str:
        bound = f"above {monitor.above:g}" if monitor.below is None else f"below {monitor.below:g}"
        steps = f" for {monitor.for_steps} steps in a row" if monitor.for_steps > 1 else ""
        return (
            f"step {step} of stage {self._stage}: {monitor.metric} is {value:.3g}, {bound}{steps}:"
            f" {ADVICE[monitor.metric]}"
        )


def _is_beyond(monitor: Monitor, metrics: Mapping[str, float]) -> bool:
    value = metrics.get(monitor.metric)
    if value is None:  # not every stage measures everything
        return False
    if monitor.below is None:
        assert monitor.above is not None
        return abs(value) > monitor.above
    return abs(value) < monitor.below
