"""Every setting of the local backend: its name, type, rule, default, variable and meaning.

The options of `tinsmith serve` and `tinsmith run`, the `backend` section of config.yaml, the
environment variables and the table of docs/local-backend.md are all made of the fields below. The
option of `min_p` is --min-p, and its variable TINKER_LOCAL_MIN_P unless the field names another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

PREFIX = "TINKER_LOCAL_"


@dataclass(frozen=True, slots=True)
class Rule:
    """A type's rule in words, which complete `<name> must be ...`."""

    words: str


Count = Annotated[int, Field(ge=1), Rule("a whole number of at least 1")]
Natural = Annotated[int, Field(ge=0), Rule("a whole number of at least 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Rule("a number above 0")]
Share = Annotated[float, Field(gt=0, le=1), Rule("a number above 0 and at most 1")]
Probability = Annotated[float, Field(ge=0, le=1), Rule("a number from 0 to 1")]
File = Annotated[str, Field(min_length=1), Rule("a file's path")]
Folder = Annotated[str, Field(min_length=1), Rule("a folder's path")]
Host = Annotated[str, Field(min_length=1), Rule("a host's name or address")]
Port = Annotated[int, Field(ge=0, le=65535), Rule("a whole number from 0 to 65535")]
Flag = Annotated[bool, Rule("0 or 1 (false or true)")]
Seed = Annotated[int, Field(ge=0, lt=2**63), Rule("a whole number from 0 to 2^63 - 1")]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"),
    Rule("auto, cpu, cuda or cuda:N")]  # fmt: skip
Trainer = Annotated[Literal["transformers"],
    Rule("transformers, the only library that Tinsmith trains with")]  # fmt: skip


def setting(
    default: Any, meaning: str, *, variable: str | None = "", is_option: bool = True
) -> Any:
    """A field of settings. `variable` "" is the one made of its name, None is none at all."""
    extra = {"variable": variable, "is_option": is_option}
    return Field(default, description=meaning, json_schema_extra=extra)


class LocalSettings(BaseModel):
    """What the pipeline's config and the server's options have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    trainer: Trainer = setting(
        "transformers", "the library that trains", variable="TINKER_LOCAL_BACKEND"
    )
    sampler: Literal["transformers", "vllm"] = setting("transformers", "the library that samples")
    device: Device = setting("auto", "what computes; auto: the first GPU, else the CPU")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "of the base model; auto: bfloat16 on a GPU, float32 on a CPU; adapters are float32",
    )
    num_gpus: Count = setting(
        1, "GPUs that share the training, a process each; on a CPU: processes"
    )
    shard_base_model: Annotated[Literal["auto"] | bool, Rule("auto, true or false")] = setting(
        "auto",
        "whether num_gpus share out the base model, of which else each holds all; auto: where one"
        " cannot hold it",
    )
    threads: Count | None = setting(None, "CPU threads of one operation; none: torch's own choice")
    store: Folder = setting("store", "where runs and checkpoints are kept")
    record: File | None = setting(
        None, "a file to which every request and its answer are appended, for docs/traffic.md"
    )
    lora_alpha: Positive = setting(32.0, "adapters are scaled by alpha / rank")
    token_budget: Annotated[Literal["auto"] | Count, Rule("auto or a whole number above 0")] = (
        setting(
            "auto",
            "tokens of one training micro-batch and of one prefill, any padding included, which"
            " bounds memory; auto: 2304 on a CPU, 4096 on a GPU",
        )
    )
    activation_memory_gb: Annotated[
        Literal["auto"] | Positive, Rule("auto or a number above 0")
    ] = setting(
        "auto",
        "GB (1e9 bytes) that the activations of one training micro-batch may take, on a CPU with"
        " the copy of the weights that a large request's adapter is merged into: where they would"
        " take more, there is no copy, then layers are computed again in the backward pass, and"
        " where that does not do, the token budget is lowered; auto: half of what is free once the"
        " models are loaded",
    )
    grad_accum_steps: Count = setting(
        1, "the fewest micro-batches that a forward_backward is cut into, as far as it has data"
    )
    seed: Seed | None = setting(
        None,
        "of adapters and sampling requests that bring no seed of their own; none: a random one"
        " each time",
    )
    min_p: Probability = setting(
        0.0,
        "sampling drops tokens below this share of the likeliest token's probability; 0: none",
    )
    decode_graphs: Flag = setting(
        True,
        "on a GPU the transformers sampler records decode steps as CUDA graphs and replays them,"
        " which saves the time that Python takes for each",
    )
    vllm_max_loras: Count = setting(128, "adapters that vLLM keeps loaded at a time")
    vllm_gpu_memory_utilization: Annotated[
        Literal["auto"] | Share, Rule("auto or a number above 0 and at most 1")
    ] = setting(
        "auto",
        "vLLM's share of the GPU's memory; auto: 0.9 of a GPU of its own, of one that it shares"
        " with the trainer most of what the trainer's model leaves",
    )
    vllm_max_model_len: Count | None = setting(
        None, "longest prompt and completion together in vLLM; none: the model's context"
    )
    vllm_tensor_parallel_size: Count = setting(1, "GPUs that vLLM spreads the model over")
    vllm_enforce_eager: Flag = setting(False, "vLLM runs without CUDA graphs")
    vllm_python: File | None = setting(
        None, "the Python that has vLLM; none: that of `make vllm-cpu` or `make vllm-cuda`"
    )
    vllm_restart_every: Natural = setting(
        0, "weights that vLLM takes before it is restarted; 0: it never is"
    )


class ServerSettings(LocalSettings):
    """What a server is started with.

    `models` maps a served name to a directory or hub id, `substitutes` losses without a published
    formula to those that stand in for them.
    """

    models: Mapping[str, str]
    api_key: str = Field(repr=False)
    substitutes: Mapping[str, str] = Field(default_factory=dict)
    host: Host = setting("127.0.0.1", "address to listen on", variable=None)
    port: Port = setting(8000, "port to listen on; 0: a free one", variable=None)
    log_format: Literal["text", "json"] = setting("text", "json: one object a line")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "debug: every request; info: those refused"
    )


def rule_of(field: FieldInfo) -> str:
    """The rule of a field's values, in words."""
    return " or ".join(_rules(field.annotation, field.metadata))


def _rules(annotation: Any, metadata: Any = ()) -> list[str]:
    for mark in metadata:
        if isinstance(mark, Rule):
            return [mark.words]
    inner = getattr(annotation, "__metadata__", ())
    if inner:
        return _rules(annotation.__origin__, inner)
    if getattr(annotation, "__origin__", None) is Literal:
        *some, last = annotation.__args__
        return [f"{', '.join(some)} or {last}" if some else last]
    return [rule for part in annotation.__args__ if part is not type(None) for rule in _rules(part)]
