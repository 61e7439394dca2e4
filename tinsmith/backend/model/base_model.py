"""Base models: loaded once, shared by every adapter trained or sampled on them."""

import copy
import logging
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from tinsmith.backend.model.sharding import ShardedLayers, shard
from tinsmith.errors import SPEAKING, TinsmithError, in_words

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYER_TYPES = {"full_attention", "sliding_attention"}
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A loaded causal language model; its parameters are frozen and never change."""

    name: str
    source: str
    module: PreTrainedModel
    tokenizer: Any
    context_length: int
    eos_token_ids: tuple[int, ...]
    shards: ShardedLayers | None = None

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype

    @property
    def tokenizer_id(self) -> str:
        """Where a client finds the tokenizer, whatever folder it runs in."""
        directory = Path(self.source)
        return str(directory.resolve()) if directory.is_dir() else self.source

    @property
    def vocabulary_size(self) -> int:
        return unembedding(self.module).weight.shape[0]

    def module_tree(self) -> PreTrainedModel:
        """A copy of the modules whose parameters are the very tensors of this model; sharded ones
        change places with whole ones, so that the modules which have them are the very same."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in self.module.parameters()}
        if self.shards is not None:
            shared |= {id(owner): owner for owner in self.shards.owners}
        return copy.deepcopy(self.module, memo=dict(shared))


def load_base_models(
    models: Mapping[str, str], device: str, dtype: str, mesh: DeviceMesh | None = None
) -> dict[str, BaseModel]:
    """Load each named directory or hub id; `auto` means CUDA and bf16 where there is a GPU. With a
    mesh of ranks, which all load the same, each keeps its part of the decoder layers."""
    if not sys.stderr.isatty():
        disable_progress_bar()  # of transformers: in a log it is noise
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    return {
        name: _load(name, source, torch_device, torch_dtype, mesh)
        for name, source in models.items()
    }


def choose_device(device: str) -> torch.device:
    """The device asked for; `auto` is the first GPU, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise TinsmithError(f"--device must be auto, cpu, cuda or cuda:N, got {device!r}")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise TinsmithError(
            f"--device {device}: PyTorch {torch.__version__} sees no CUDA device on this machine; "
            "use --device cpu or --device auto, or install a CUDA build of PyTorch"
        )
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype asked for; `auto` is bfloat16 on a GPU and float32 on the CPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[dtype]


def _load(
    name: str, source: str, device: torch.device, dtype: torch.dtype, mesh: DeviceMesh | None
) -> BaseModel:
    config = read_config(name, source)
    try:
        module, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise cannot_be_loaded(name, source, error) from error
    _check_complete(name, source, report["missing_keys"])
    module.requires_grad_(False).eval()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if mesh is None:
        nn.Module.to(module, device)
        shards = None
    else:
        shards = shard(module, backbone(module), _layers_to_shard(name, module), mesh, device)
    log.info("loaded %s: %.1fM parameters, %s, %s", name, parameters / 1e6, dtype, device)
    return BaseModel(
        name=name,
        source=source,
        module=module,
        tokenizer=tokenizer,
        context_length=_context_length(name, config),
        eos_token_ids=_eos_token_ids(name, tokenizer),
        shards=shards,
    )


def read_config(name: str, source: str) -> Any:
    """The configuration of a model that can be served, or why it cannot."""
    _check_directory(name, source)
    try:
        config = AutoConfig.from_pretrained(source)
    except Exception as error:
        raise cannot_be_loaded(name, source, error) from error
    _check_layers(name, config)
    return config


def cannot_be_loaded(name: str, source: str, error: Exception) -> TinsmithError:
    """Of whatever transformers raises of a model's files, which it checks little."""
    advice = "; config.json, weights and tokenizer must be those of one model that transformers has"
    if isinstance(error, (*SPEAKING, MemoryError)):
        advice = ""
    return TinsmithError(f"--model {name}={source} cannot be loaded: {in_words(error)}{advice}")


def _check_directory(name: str, source: str) -> None:
    directory = Path(source)
    if not directory.is_dir():
        if directory.is_absolute() or source.startswith("."):
            raise TinsmithError(f"--model {name}={source}: there is no such directory")
        return
    if not (directory / "config.json").is_file():
        raise TinsmithError(f"--model {name}={source}: the directory has no config.json")
    if not any(directory.glob("*.safetensors")):
        raise TinsmithError(
            f"--model {name}={source}: the directory has no weights (*.safetensors); "
            "other formats are not read, since unpickling runs code"
        )
    if not any(file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)):
        raise TinsmithError(
            f"--model {name}={source}: the directory has no tokenizer (tokenizer.json or another "
            "vocabulary)"
        )


def _check_complete(name: str, source: str, missing: Collection[str]) -> None:
    # transformers would make random numbers stand in for them.
    if missing:
        raise TinsmithError(
            f"--model {name}={source}: the weights lack {len(missing)} tensors of the model, "
            f"such as {min(missing)}; is a file of the download missing?"
        )


def _layers_to_shard(name: str, module: PreTrainedModel) -> nn.ModuleList:
    layers = decoder_layers(module)
    if layers is None:
        raise TinsmithError(
            f"--model {name}: a {type(module).__name__} has no list of its decoder layers, so it "
            "cannot be sharded; start the server with --shard-base-model false"
        )
    return layers


def _check_layers(name: str, config: Any) -> None:
    unknown = set(getattr(config.get_text_config(), "layer_types", None) or ()) - LAYER_TYPES
    if unknown:
        raise TinsmithError(
            f"--model {name}: layers of type {', '.join(sorted(unknown))} are not supported; "
            "the sampler keeps keys and values of attention layers only"
        )


def _context_length(name: str, config: Any) -> int:
    """Tokens of the longest sequence. A model of the kind `longrope` (Ding et al. 2024, arXiv
    2402.13753) rotates all tokens otherwise where one lies beyond a certain position, so that
    results would depend on what else is in a batch; it is served up to there, less the one that
    vLLM, which rotates by the longest sequence it is made for, samples behind the context."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    whole, kinds = text.max_position_embeddings, [rope, *rope.values()]
    limits = [
        kind["original_max_position_embeddings"] - 1
        for kind in kinds
        if isinstance(kind, dict) and kind.get("rope_type") == "longrope"
    ]
    if not limits or whole <= min(limits):
        return whole
    log.warning(
        "%s: longrope rotates tokens by the length of other sequences beyond %d tokens; the model "
        "is served with this context, not with its %d",
        name,
        min(limits),
        whole,
    )
    return min(limits)


def _eos_token_ids(name: str, tokenizer: Any) -> tuple[int, ...]:
    if tokenizer.eos_token_id is None:
        raise TinsmithError(f"--model {name}: the tokenizer names no eos_token, so nothing ends")
    return (tokenizer.eos_token_id,)


def backbone(module: PreTrainedModel) -> nn.Module:
    """The model without its unembedding: token ids to last hidden states."""
    return getattr(module, module.base_model_prefix)


def decoder_layers(module: PreTrainedModel) -> nn.ModuleList | None:
    """The layers between embedding and last norm, if they are one list."""
    count = module.config.get_text_config().num_hidden_layers
    lists = [child for child in backbone(module).children() if isinstance(child, nn.ModuleList)]
    return next((layers for layers in lists if len(layers) == count), None)


def unembedding(module: PreTrainedModel) -> nn.Linear:
    """The layer from hidden states to logits, adapted or not."""
    layer = module.get_output_embeddings()
    assert layer is not None, "a causal language model has an unembedding"
    return layer  # pyright: ignore[reportReturnType] an adapted layer stands in for the linear one


def unembed(module: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Logits in float32 of hidden states, with the scalings that some model families apply."""
    logits_NV = unembedding(module)(hidden_ND).float()
    config = module.config.get_text_config()
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits_NV = logits_NV / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits_NV = logits_NV * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV
