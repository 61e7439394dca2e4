"""The whole config, and the rules that span its sections."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from tinsmith.config.monitors import DEFAULT_MONITORS, Monitor
from tinsmith.config.sections import (
    Backend,
    Data,
    Evaluation,
    Lora,
    Model,
    Section,
    SingleTurn,
    Task,
)
from tinsmith.config.stages import Stage
from tinsmith.tiny.limits import refusal

RESERVED_NAMES = ("base", "export")


class Config(Section):
    """config.yaml."""

    model: Model
    backend: Backend = Backend()
    data: Data
    task: Task
    paradigm: SingleTurn = SingleTurn()
    lora: Lora = Lora()
    stages: tuple[Stage, ...] = Field(min_length=1)
    monitors: tuple[Monitor, ...] = DEFAULT_MONITORS
    evaluation: Evaluation = Evaluation()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    sweep: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_usable(self) -> "Config":
        reserved = {*RESERVED_NAMES, *type(self).model_fields}
        taken: set[str] = set()
        for index, stage in enumerate(self.stages):
            if stage.name in reserved:
                raise ValueError(
                    f"stages[{index}].name must not be one of {', '.join(sorted(reserved))},"
                    f" got {stage.name!r}"
                )
            if stage.name in taken:
                raise ValueError(
                    f"stages[{index}].name must be unique, got {stage.name!r} twice;"
                    " give one of them another `name`"
                )
            taken.add(stage.name)
        return self

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> "Config":
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, got {list(self.seeds)}")
        return self

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> "Config":
        if self.backend.kind == "api" and self.model.kind != "hub":
            raise ValueError(
                "model.kind must be 'hub' with backend.kind 'api' (TINKER_BACKEND counts), because"
                f" the hosted service knows models by their hub names, got {self.model.kind!r}"
            )
        if self.model.kind == "tiny" and self.data.kind == "arithmetic":
            reason = refusal(self.data.digits, self.data.operations)
            if reason is not None:
                raise ValueError(reason)
        most = max(self.evaluation.num_problems, *(s.eval_problems for s in self.stages))
        if most > self.data.held_out:
            raise ValueError(
                f"evaluation.num_problems and eval_problems must be at most data.held_out ="
                f" {self.data.held_out}, got {most}"
            )
        return self
