"""The sections of config.yaml other than the stages: frozen, strict, with every default."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tinsmith.settings import Count as Threads
from tinsmith.settings import LocalSettings, Natural, Rule, setting

COMMIT, REPOSITORY = r"^[0-9a-f]{40}$", r"^[\w.-]+/[\w.-]+$"
TABLE_FILE, STAGE_NAME = r"\.(jsonl|csv|parquet)$", r"^[a-z0-9_-]+$"
CLASS = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
USER_CLASS = "module:Class"
MODULE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
INSPECT_TASK = r"^[\w./-]+\.py@\w+$|^\w+/\w+$"
CHECKPOINT = r"^tinker://.+"
RESULTS_FOLDER = r"^[^{}<>]*[^{}<>/]$"
IMAGE_FILE = r"^\S+\.sif$"
GPU_MODEL = r"^[A-Za-z0-9_.]+$"
SERVICE_URL = r"^https?://[^\s/?#@]+/?$"
PATTERNS = {
    COMMIT: "must be a full commit hash of 40 hex digits, which pins it",
    REPOSITORY: "must be a hub repository's name like Org/Name",
    TABLE_FILE: "must end in .jsonl, .csv or .parquet",
    CHECKPOINT: "must be the tinker:// path of saved sampler weights",
    RESULTS_FOLDER: "must be a folder's path without braces, < and >, or a / at its end",
    GPU_MODEL: "must be the model as SLURM calls it, letters, digits, '.' and '_', like gh200",
    SERVICE_URL: "must be a server's address, like https://gpu-node.example.org:8443",
    STAGE_NAME: "must hold small letters, digits, '-' and '_' only",
    IMAGE_FILE: "must be a .sif file, its path without spaces",
    CLASS: "must name a class as module:Class, like my_code:MyClass",
    INSPECT_TASK: "must be a task like my_tasks.py@capitals, or package/task",
    MODULE: "must be a module's name, like chat_sl.train or my_recipes.train",
}

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Operation = Literal["+", "-", "*"]
StageName = Annotated[str, Field(pattern=STAGE_NAME)]
Commit = Annotated[str, Field(pattern=COMMIT)]
RepositoryName = Annotated[str, Field(pattern=REPOSITORY)]
Address = Annotated[
    str, Field(pattern=SERVICE_URL), Rule(PATTERNS[SERVICE_URL].removeprefix("must be "))
]


class Section(BaseModel):
    """A part of the config: unknown keys, lossy conversions, NaN and later changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class UserClass(Section):
    """A class of the user's own code; `options` are its keyword arguments."""

    kind: Annotated[str, Field(pattern=CLASS)]
    options: dict[str, Any] = Field(default_factory=dict)


def tag_of_kind(values: Any) -> str | None:
    """Which member of a union a section is: its `kind`, or the one for all classes of users."""
    kind = values.get("kind") if isinstance(values, dict) else getattr(values, "kind", None)
    return USER_CLASS if ":" in str(kind) else None if kind is None else str(kind)


class TinyModel(Section):
    """A small Qwen3-architecture model, pretrained on the spot on text of the arithmetic task."""

    kind: Literal["tiny"]
    seed: Seed = 0
    hidden_size: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    num_layers: Count = 2
    pretrain_steps: Count = 250


class HubModel(Section):
    """A Hugging Face hub repository at a pinned commit."""

    kind: Literal["hub"]
    name: RepositoryName
    revision: Commit


class PathModel(Section):
    """Any local directory that holds a Hugging Face causal language model; `name` is what the
    Tinker API calls it, if not by the directory's name."""

    kind: Literal["path"]
    path: Text
    name: RepositoryName | None = None


Model = Annotated[TinyModel | HubModel | PathModel, Field(discriminator="kind")]


class Backend(LocalSettings):
    """What stands behind the Tinker wire: Tinsmith's own server with its settings, started by each
    job or somewhere by hand, or the hosted service."""

    kind: Literal["local", "remote", "hosted"] = setting(
        "local", "Tinsmith's own server, one that runs elsewhere, or the hosted service",
        variable="TINKER_BACKEND",
    )  # fmt: skip
    url: Address | None = setting(None, "where the server runs, with kind remote", variable=None)
    # Which GPU is the scheduler's to say.
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "what computes; auto: a GPU, else the CPU"
    )
    threads: Threads = setting(1, "CPU threads of a job")
    gpus: Natural = setting(0, "GPUs of a job", variable=None)
    keep_s: Natural = setting(
        60,
        "seconds that a server waits for the next job of a workflow; 0: it has one",
        variable=None,
    )

    @model_validator(mode="after")
    def _the_service_has_its_own_ways(self) -> "Backend":
        if self.kind == "hosted" and self.lora_alpha != 32:
            raise ValueError(
                "lora_alpha must be 32 with kind 'hosted' (TINKER_BACKEND counts), which is the"
                f" service's own, got {self.lora_alpha:g}"
            )
        if self.kind == "hosted" and self.record is not None:
            raise ValueError(
                "record must be none with kind 'hosted' (TINKER_LOCAL_RECORD counts): only a local"
                f" server writes down its traffic, got {self.record!r}"
            )
        return self


class Container(Section):
    """The Apptainer image that the rules run in, if they do: one of containers/, or `image`, which
    is used as it is."""

    use: bool = False
    definition: Literal["engine", "engine-cuda", "vllm"] = "engine"
    base: Text | None = None
    build_options: list[Text] = Field(default_factory=list)
    image: Annotated[str, Field(pattern=IMAGE_FILE)] | None = None

    @model_validator(mode="after")
    def _is_built_or_given(self) -> "Container":
        if self.image is not None and (self.base is not None or self.build_options):
            raise ValueError(
                "image must be left out with base and build_options, which say how to build one; it"
                f" is used as it is, got {self.image!r}"
            )
        return self


def use_what_is_described(value: Any) -> Any:
    """`container: true` is the image of the defaults, and one that is described is used."""
    if isinstance(value, bool):
        return {"use": value}
    return {"use": True, **value} if isinstance(value, dict) else value


class Split(Section):
    """How many problems are held out, and the seed of the hash that picks them."""

    held_out: Count
    split_seed: Seed = 0


class ArithmeticData(Split):
    """Distinct arithmetic problems whose operands have up to `digits` digits."""

    kind: Literal["arithmetic"]
    digits: Annotated[int, Field(ge=1, le=6)] = 2
    operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = ("+",)
    num_problems: Annotated[int, Field(ge=2)] = 2000
    held_out: Count = 500

    @model_validator(mode="after")
    def _fits(self) -> "ArithmeticData":
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations must not repeat, got {list(self.operations)}")
        possible = len(self.operations) * 100**self.digits
        if self.num_problems > possible:
            raise ValueError(
                f"num_problems must be at most {possible}, all that {self.digits} digits and"
                f" {len(self.operations)} operations make, got {self.num_problems}"
            )
        if self.held_out >= self.num_problems:
            raise ValueError(
                f"held_out must be below num_problems = {self.num_problems}, got {self.held_out}"
            )
        return self


class TableData(Split):
    """Which fields of a row are the question, the answer (None: there is none), and what else the
    task reads."""

    question_field: str = "question"
    answer_field: str | None = "answer"
    extra_fields: tuple[Text, ...] = ()


class FileData(TableData):
    """A local .jsonl, .csv or .parquet file."""

    kind: Literal["file"]
    path: str = Field(pattern=TABLE_FILE)


class HubData(TableData):
    """A split of a Hugging Face hub dataset at a pinned commit."""

    kind: Literal["hub"]
    name: RepositoryName
    revision: Commit
    subset: str | None = None
    split: str = "train"


Data = Annotated[ArithmeticData | FileData | HubData, Field(discriminator="kind")]


class SingleTurn(Section):
    """One prompt, one completion, one reward."""

    kind: Literal["single_turn"] = "single_turn"


class Lora(Section):
    """The adapter: its rank and the linear layers that it covers."""

    rank: Count = 32
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    @model_validator(mode="after")
    def _trains_something(self) -> "Lora":
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ValueError("train_unembed must be true where train_attn and train_mlp are not")
        return self


class Evaluation(Section):
    """The evaluation on held-out problems, of the base and after every stage."""

    num_problems: Count = 200
    samples_per_problem: Count = 4
    temperature: Annotated[float, Field(ge=0)] = 1.0
    max_tokens: Count = 16
    pass_at_k: tuple[Count, ...] = (1, 4)

    @model_validator(mode="after")
    def _has_the_samples(self) -> "Evaluation":
        too_many = [k for k in self.pass_at_k if k > self.samples_per_problem]
        if too_many:
            raise ValueError(
                f"pass_at_k must not exceed samples_per_problem = {self.samples_per_problem},"
                f" got {too_many[0]}"
            )
        if self.temperature == 0 and self.samples_per_problem > 1:
            raise ValueError(
                "samples_per_problem must be 1 at temperature 0, where all samples are the same,"
                f" got {self.samples_per_problem}"
            )
        return self
