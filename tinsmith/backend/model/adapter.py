"""LoRA adapters: where they sit, how they start, and their files in the PEFT format.

LoRA: y = W x + (alpha / r) B A x (Hu et al. 2021, eq. 3).
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.fused_lora import ADAPTER, FusedLoraLinear
from tinsmith.backend.model.fused_norm import fuse_norms
from tinsmith.backend.model.packed_attention import use_packed_attention
from tinsmith.backend.model.training_layer import use_training_layers
from tinsmith.errors import TinsmithError

MAX_RANK = 1024


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Which linear layers of a model carry an adapter, of what rank and scale."""

    rank: int
    alpha: float
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise TinsmithError(f"lora_config.rank must be 1 to {MAX_RANK}, got {self.rank}")
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise TinsmithError(
                "lora_config: train_attn, train_mlp and train_unembed are all false, "
                "so there is nothing to train; set at least one"
            )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """Low-rank pairs by the name of the linear layer they sit on, in float32.

    `pairs[name] = (A [r, in], B [out, r])`. The tensors are never written to again.
    """

    settings: LoraSettings
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    def save(self, directory: Path, base_model: str) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT reads them."""
        tensors = {}
        for name, (a, b) in self.pairs.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.cpu().contiguous()
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config = peft_config(self.settings, sorted({n.rsplit(".", 1)[-1] for n in self.pairs}))
        values = config.to_dict() | {
            "base_model_name_or_path": base_model,
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "target_modules": sorted(config.target_modules or []),
        }
        text = json.dumps(values, indent=2, sort_keys=True, default=str)
        (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(directory: Path, settings: LoraSettings) -> "AdapterWeights":
        """Read what `save` wrote."""
        tensors = load_file(directory / "adapter_model.safetensors")
        suffix = ".lora_A.weight"
        names = [key.removesuffix(suffix) for key in tensors if key.endswith(suffix)]
        return AdapterWeights(
            settings,
            {
                name.removeprefix("base_model.model."): (
                    tensors[f"{name}.lora_A.weight"],
                    tensors[f"{name}.lora_B.weight"],
                )
                for name in names
            },
        )


def attach_adapter(base: BaseModel, settings: LoraSettings, seed: int) -> PreTrainedModel:
    """A module tree on the shared base with a fresh trainable adapter on it.

    A ~ U(-1/sqrt(in), 1/sqrt(in)) from `seed`, drawn in the order of the layers; B = 0, so that
    the adapted model starts as the base model. Adapters are float32 whatever the base is.
    """
    module = base.module_tree()
    targets = linear_layers(module, settings)
    with warnings.catch_warnings():
        # PEFT warns that merging into a tied unembedding changes the embedding; the adapter is
        # merged into a copy of the unembedding alone (sampling/replica.py).
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        config = peft_config(settings, targets)
        config._register_custom_module({nn.Linear: FusedLoraLinear})
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    fuse_norms(base, module)
    use_packed_attention(module)
    use_training_layers(base, module)
    generator = torch.Generator().manual_seed(seed)
    for _, a, b in lora_pairs(module):
        bound = 1 / math.sqrt(a.shape[1])
        start = torch.empty(a.shape, dtype=torch.float32).uniform_(
            -bound, bound, generator=generator
        )
        a.data = start.to(base.device)
        b.data = torch.zeros(b.shape, dtype=torch.float32, device=base.device)
    return module


def linear_layers(module: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """Names of the linear layers that the flags select: attention, MLP, unembedding."""
    output = module.get_output_embeddings()
    chosen: dict[str, list[str]] = {"train_attn": [], "train_mlp": [], "train_unembed": []}
    for name, layer in module.named_modules():
        if layer is output:
            chosen["train_unembed"].append(name)
        elif isinstance(layer, nn.Linear):
            kind = "train_attn" if "attn" in name or "attention" in name else "train_mlp"
            chosen[kind].append(name)
    for flag, names in chosen.items():
        if getattr(settings, flag) and not names:
            raise TinsmithError(
                f"lora_config.{flag} is true, but this {type(module).__name__} has no linear "
                f"layer of that kind (fused expert weights are not supported); set {flag}=False"
            )
    return [name for flag, names in chosen.items() if getattr(settings, flag) for name in names]


def lora_pairs(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Name, A [r, in] and B [out, r] of the adapted layers, in the order of the model."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            assert isinstance(a, nn.Parameter)
            assert isinstance(b, nn.Parameter)
            yield name, a, b


def adapter_weights(module: nn.Module, settings: LoraSettings) -> AdapterWeights:
    """A copy of the adapter's present weights: training on does not change it."""
    return AdapterWeights(
        settings,
        {name: (a.detach().clone(), b.detach().clone()) for name, a, b in lora_pairs(module)},
    )


def set_adapter_weights(module: nn.Module, weights: AdapterWeights) -> None:
    """Overwrite the adapter's weights by those of a checkpoint."""
    layers = {name: (a, b) for name, a, b in lora_pairs(module)}
    if {n: _shapes(pair) for n, pair in layers.items()} != {
        n: _shapes(pair) for n, pair in weights.pairs.items()
    }:
        raise TinsmithError(
            "the checkpoint's adapter does not fit this base model: it has other layers or shapes; "
            "was another model served under the same name?"
        )
    for name, (a, b) in layers.items():
        a.data.copy_(weights.pairs[name][0])
        b.data.copy_(weights.pairs[name][1])


def peft_config(settings: LoraSettings, target_modules: list[str]) -> LoraConfig:
    """The PEFT configuration of an adapter on `target_modules`."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] PEFT divides it only
        target_modules=target_modules,
        lora_dropout=0.0,
        bias="none",
    )


def _shapes(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Size, torch.Size]:
    return pair[0].shape, pair[1].shape
