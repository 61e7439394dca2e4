"""The kinds of training stage that `stages:` may list, one frozen model each."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tinsmith.config.cookbook import Cookbook
from tinsmith.config.sections import Count, Section, StageName

AutoRate = Annotated[float, Field(gt=0)] | Literal["auto"]
AutoCount = Count | Literal["auto"]


class StageBase(Section):
    """What every stage has: its length, its learning rate, and how often it saves and evaluates."""

    steps: Count
    learning_rate: AutoRate = "auto"
    reference_batch_size: Count | None = None
    save_every: AutoCount = "auto"
    eval_every: Count = 5
    eval_problems: Count = 64
    max_tokens: Count = 16

    @model_validator(mode="after")
    def _scales_what_is_auto(self) -> "StageBase":
        if self.reference_batch_size is not None and self.learning_rate != "auto":
            raise ValueError(
                "reference_batch_size scales learning_rate 'auto' only; leave it out with"
                f" learning_rate {self.learning_rate}"
            )
        return self


class Supervised(StageBase):
    """Cross-entropy on the reference answers; the prompt is masked out."""

    kind: Literal["supervised"]
    name: StageName = "supervised"
    batch_size: Count = 32


class SamplingStage(StageBase):
    """What stages that learn from their own samples share."""

    problems_per_step: Count = 32
    samples_per_problem: Count = 8
    no_signal: Literal["stop", "skip"] = "stop"


class Rejection(SamplingStage):
    """Sample, keep the completions that are right (or the best of each group, or the winners' of a
    debate), train on those."""

    kind: Literal["rejection"]
    name: StageName = "rejection"
    select: Literal["correct", "best", "winner"] = "correct"
    loss: Literal["cross_entropy", "importance_sampling"] = "cross_entropy"
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _is_on_policy(self) -> "Rejection":
        if self.loss == "importance_sampling" and self.temperature != 1.0:
            raise ValueError(
                "temperature must be 1 with loss importance_sampling, because the trainer scores"
                f" at temperature 1, got {self.temperature}"
            )
        return self


class Grpo(SamplingStage):
    """Group-relative policy optimisation; samples at temperature 1, at which the trainer scores."""

    kind: Literal["grpo"]
    name: StageName = "grpo"
    samples_per_problem: Annotated[int, Field(ge=2)] = 8
    normalise_by_std: bool = False
    zero_variance: Literal["resample", "drop"] = "drop"
    max_resamples: Count = 3
    learn_from: Literal["all", "winners"] = "all"
    loss: Literal["importance_sampling", "ppo", "cispo", "gspo"] = "importance_sampling"
    clip_low: Annotated[float, Field(ge=0, le=1)] | None = None
    clip_high: Annotated[float, Field(ge=1)] | None = None
    normalise_by: Literal["none", "token", "sequence"] = "none"
    substeps: Count = 1
    kl_penalty: Annotated[float, Field(ge=0)] = 0.0
    truncate_ratio: Annotated[float, Field(ge=1)] | None = None
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 0

    @model_validator(mode="after")
    def _clips_what_has_bounds(self) -> "Grpo":
        given = [name for name in ("clip_low", "clip_high") if getattr(self, name) is not None]
        if given and self.loss == "importance_sampling":
            raise ValueError(
                f"{given[0]} belongs to a loss that clips, ppo, cispo or gspo; loss"
                " importance_sampling has no bounds"
            )
        return self

    @model_validator(mode="after")
    def _resamples_if_told_to(self) -> "Grpo":
        default = type(self).model_fields["max_resamples"].default
        if self.zero_variance == "drop" and self.max_resamples != default:
            raise ValueError(
                f"max_resamples needs zero_variance 'resample', got {self.max_resamples} with"
                " 'drop'"
            )
        return self

    @model_validator(mode="after")
    def _has_parts(self) -> "Grpo":
        most = self.problems_per_step * self.samples_per_problem
        if self.substeps > most:
            raise ValueError(
                f"substeps must be at most problems_per_step x samples_per_problem = {most},"
                f" got {self.substeps}"
            )
        return self


# Those whose loop is Tinsmith's own, and all.
OwnStage = Annotated[Supervised | Rejection | Grpo, Field(discriminator="kind")]
Stage = Annotated[Supervised | Rejection | Grpo | Cookbook, Field(discriminator="kind")]
