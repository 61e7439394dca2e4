"""What is watched while a stage trains, and what is done when it goes wrong."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tinsmith.config.sections import Count, Section

Number = Annotated[float, Field(ge=0)]


class Monitor(Section):
    """A bound on a metric's absolute value, and what happens when `for_steps` steps in a row are
    beyond it."""

    metric: Literal[
        "kl_nats",
        "entropy_nats",
        "share_finished",
        "share_parsed",
        "share_zero_variance",
        "share_right",
        "reward_mean",
        "completion_length_mean",
        "grad_norm",
    ]
    above: Number | None = None
    below: Number | None = None
    for_steps: Count = 1
    then: Literal["warn", "stop"] = "warn"

    @model_validator(mode="after")
    def _has_one_bound(self) -> "Monitor":
        if (self.above is None) == (self.below is None):
            raise ValueError("metric needs either `above` or `below`, got both or neither")
        return self


DEFAULT_MONITORS = (
    Monitor(metric="kl_nats", above=0.01),
    Monitor(metric="share_finished", below=0.5, for_steps=3),
    Monitor(metric="share_parsed", below=0.5, for_steps=3),
    Monitor(metric="entropy_nats", below=0.02, for_steps=3),
    Monitor(metric="share_zero_variance", above=0.9, for_steps=3),
)
