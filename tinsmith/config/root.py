"""The whole config, and the rules that span its sections."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from tinsmith.config.checkpoints import Checkpoints
from tinsmith.config.cookbook import Cookbook
from tinsmith.config.inspection import InspectTask
from tinsmith.config.monitors import DEFAULT_MONITORS, Monitor
from tinsmith.config.paradigms import Debate, Paradigm
from tinsmith.config.resources import Resources
from tinsmith.config.sections import (
    RESULTS_FOLDER,
    Backend,
    Container,
    Data,
    Evaluation,
    Lora,
    Model,
    Section,
    SingleTurn,
    TableData,
    TinyModel,
    UserClass,
    use_what_is_described,
)
from tinsmith.config.stages import Grpo, Rejection, Stage
from tinsmith.config.tasks import ConstrainedTask, QaTask, SummaryTask, Task
from tinsmith.config.trackers import Tracker
from tinsmith.errors import nearest
from tinsmith.tiny.limits import refusal

RESERVED_NAMES = ("base", "export")
# Sections for stages whose loop is Tinsmith's own, and what recipes have in their place.
_OF_OWN_STAGES = {
    "monitors": "nothing watches the metrics of a recipe, which go to metrics.jsonl",
    "checkpoints": (
        "a recipe saves as its own `arguments` say, save_every in most, and goes on where it was"
        " cut off"
    ),
    "trackers": "the metrics of a recipe go to metrics.jsonl alone",
}


class Config(Section):
    """config.yaml."""

    model: Model = TinyModel(kind="tiny")
    backend: Backend = Backend()
    data: Data
    task: Task
    paradigm: Paradigm = SingleTurn()
    lora: Lora = Lora()
    stages: tuple[Stage, ...] = Field(min_length=1)
    monitors: tuple[Monitor, ...] = DEFAULT_MONITORS
    checkpoints: Checkpoints = Checkpoints()
    trackers: tuple[Tracker, ...] = ()
    evaluation: Evaluation = Evaluation()
    inspect: tuple[InspectTask, ...] = ()
    container: Annotated[Container, BeforeValidator(use_what_is_described)] = Container()
    resources: Resources = Resources()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    sweep: dict[str, list[Any]] = Field(default_factory=dict)
    results: Annotated[str, Field(pattern=RESULTS_FOLDER)] = "results"

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
    def _trackers_are_distinct(self) -> "Config":
        kinds = [tracker.kind for tracker in self.trackers]
        for index, kind in enumerate(kinds):
            if kind in kinds[:index]:
                raise ValueError(f"trackers[{index}].kind must be unique, got {kind!r} twice")
        if kinds and self.container.use:
            raise ValueError(
                "trackers must be left out with container, whose images hold none of them, got"
                f" {', '.join(kinds)}"
            )
        return self

    @model_validator(mode="after")
    def _recipes_alone_have_no_settings_of_other_stages(self) -> "Config":
        if not all(isinstance(stage, Cookbook) for stage in self.stages):
            return self
        for key, instead in _OF_OWN_STAGES.items():
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                raise ValueError(
                    f"{key} must be left out where every stage is of kind 'cookbook': {instead}"
                )
        return self

    @model_validator(mode="after")
    def _stages_fit_the_paradigm(self) -> "Config":
        for index, stage in enumerate(self.stages):
            if isinstance(stage, Rejection | Grpo) and (reason := _misfit(stage, self.paradigm)):
                raise ValueError(f"stages[{index}].{reason}")
        return self

    @model_validator(mode="after")
    def _recipes_have_what_they_need(self) -> "Config":
        for index, stage in enumerate(self.stages):
            if isinstance(stage, Cookbook) and (reason := _lack(self, stage, index)):
                raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _inspect_can_ask(self) -> "Config":
        names = [task.name for task in self.inspect]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"inspect[{index}].name must be unique, got {name!r} twice")
        if names and self.backend.kind == "hosted":
            raise ValueError(
                "inspect must be left out with backend.kind 'hosted' (TINKER_BACKEND counts):"
                " Inspect asks through the OpenAI endpoint of a Tinsmith server"
            )
        if names and self.container.use:
            raise ValueError(
                "container must be false with inspect, whose environment, .venvs/inspect, is of"
                " this machine and not of the image"
            )
        return self

    @model_validator(mode="after")
    def _the_data_hold_what_is_read(self) -> "Config":
        data, task = self.data, self.task
        supervised = [f"stage {s.name!r}" for s in self.stages if s.kind == "supervised"]
        if isinstance(task, QaTask) and task.grader == "regular_expression" and supervised:
            raise ValueError(
                f"task.grader must not be 'regular_expression' with {supervised[0]}, which would"
                " teach the model to write the patterns"
            )
        fields = data.extra_fields if isinstance(data, TableData) else ()
        if isinstance(task, ConstrainedTask) and "constraints" not in fields:
            raise ValueError(
                "data.extra_fields must list 'constraints', a field of the rows, with task.kind"
                f" 'constrained', got {list(fields)}"
            )
        if isinstance(data, TableData) and data.answer_field is None:
            # A task of the user's own may make its references without them.
            needs = [] if isinstance(task, UserClass) else supervised
            needs += [f"task.kind {task.kind!r}"] if _needs_answers(task) else []
            if needs:
                raise ValueError(
                    f"data.answer_field must name a field, because {' and '.join(needs)} must know"
                    " the answers, got None"
                )
        return self

    @model_validator(mode="after")
    def _the_backend_is_whole(self) -> "Config":
        """Not the section's own rules: what travels beside a job's settings is missing there."""
        backend = self.backend
        if backend.kind == "remote" and backend.url is None:
            raise ValueError(
                "backend.url is required with backend.kind 'remote' (TINKER_BACKEND counts): the"
                " address of a running `tinsmith serve`"
            )
        if backend.kind != "remote" and backend.url is not None:
            raise ValueError(
                f"backend.url belongs to backend.kind 'remote', got {backend.url!r} with"
                f" {backend.kind!r}"
            )
        is_on_gpu = backend.device == "cuda" or (backend.device == "auto" and backend.gpus > 0)
        if backend.kind == "local" and is_on_gpu and backend.gpus < backend.num_gpus:
            raise ValueError(
                f"backend.gpus must be at least backend.num_gpus = {backend.num_gpus} with"
                f" backend.device {backend.device!r}, got {backend.gpus}"
            )
        if backend.kind == "local" and backend.shard_base_model is True and backend.num_gpus == 1:
            raise ValueError(
                "backend.num_gpus must be at least 2 with backend.shard_base_model true, got 1"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> "Config":
        if self.backend.kind == "hosted" and self.model.kind != "hub":
            raise ValueError(
                "model.kind must be 'hub' with backend.kind 'hosted' (TINKER_BACKEND counts),"
                " because the hosted service knows models by their hub names, got"
                f" {self.model.kind!r}"
            )
        if self.model.kind == "tiny" and self.data.kind == "arithmetic":
            reason = refusal(self.data.digits, self.data.operations)
            if reason is not None:
                raise ValueError(reason)
        of_stages = (s.eval_problems for s in self.stages if not isinstance(s, Cookbook))
        evaluated, validating = self.evaluation.num_problems, max(of_stages, default=0)
        if evaluated + validating > self.data.held_out:
            raise ValueError(
                "evaluation.num_problems + eval_problems of a stage must be at most data.held_out ="
                f" {self.data.held_out}, because what validates a stage while it trains is no part"
                f" of its evaluation, got {evaluated} + {validating}"
            )
        return self


def _needs_answers(task: Task) -> bool:
    if isinstance(task, SummaryTask):
        return task.weights.rouge > 0
    return not isinstance(task, ConstrainedTask | UserClass)


def _lack(config: Config, stage: Cookbook, index: int) -> str | None:
    """Why a stage of the cookbook cannot run where it stands; None if it can."""
    if config.container.use:
        return (
            f"container must be false with stages[{index}].kind 'cookbook', whose environment,"
            " .venvs/cookbook, is of this machine and not of the image"
        )
    earlier = {before.name: before for before in config.stages[:index]}
    for key, name in stage.references().items():
        if name not in earlier:
            return (
                f"stages[{index}].arguments.{key} must name an earlier stage, got"
                f" {stage.texts()[key]!r}{nearest(name, earlier)}"
            )
    for name in stage.reads:
        if not isinstance(earlier.get(name), Cookbook):
            return (
                f"stages[{index}].reads must list earlier stages of kind 'cookbook', got {name!r}"
            )
    lora = config.lora
    is_new = index == 0 or stage.start == "recipe"
    if is_new and not (lora.train_attn and lora.train_mlp and lora.train_unembed):
        return (
            f"lora.train_attn, train_mlp and train_unembed must be true with stages[{index}].kind"
            " 'cookbook', whose recipes train every layer of a new adapter"
        )
    return None


def _misfit(stage: Rejection | Grpo, paradigm: Paradigm) -> str | None:
    """Why a stage cannot learn from a paradigm's rollouts; None if it can."""
    if paradigm.kind == "single_turn":
        if stage.kind == "rejection" and stage.select == "winner":
            return (
                "select must be 'correct' or 'best' with paradigm.kind 'single_turn', in which"
                " nobody wins, got 'winner'"
            )
        if stage.kind == "grpo" and stage.learn_from == "winners":
            return (
                "learn_from must be 'all' with paradigm.kind 'single_turn', in which nobody wins,"
                " got 'winners'"
            )
    if isinstance(paradigm, Debate) and paradigm.opponent.kind == "self":
        if stage.samples_per_problem % 2:
            return (
                "samples_per_problem must be even with paradigm.opponent.kind 'self', where the two"
                f" speakers of a debate are two samples, got {stage.samples_per_problem}"
            )
        if stage.kind == "grpo" and stage.samples_per_problem < 4:
            return (
                "samples_per_problem must be at least 4 with paradigm.opponent.kind 'self', because"
                " each speaker's rewards are compared over at least two debates, got"
                f" {stage.samples_per_problem}"
            )
    return None
