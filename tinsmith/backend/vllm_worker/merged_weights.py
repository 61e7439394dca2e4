"""Adapters merged into the weights that a vLLM worker computes with."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class MergedWeights:
    """Mixed into vLLM's worker, which has `model_runner`."""

    model_runner: Any

    def install_merged(self, model: str, adapter: str | None) -> None:
        """Compute with W' = W + (alpha / r) B A from now on; without an adapter with W."""
        folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(model))
        pairs, scaling = ({}, 0.0) if adapter is None else _read_adapter(Path(adapter))
        weights = _merged(folder, pairs, scaling)
        self.model_runner.reload_weights(weights_iterator=weights)


def _read_adapter(folder: Path) -> tuple[Pairs, float]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    suffix = ".lora_A.weight"
    names = [key.removesuffix(suffix) for key in tensors if key.endswith(suffix)]
    pairs = {
        name.removeprefix("base_model.model."): (
            tensors[f"{name}.lora_A.weight"],
            tensors[f"{name}.lora_B.weight"],
        )
        for name in names
    }
    return pairs, config["lora_alpha"] / config["r"]


def _merged(folder: Path, pairs: Pairs, scaling: float) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors; where it has no unembedding, that is the embedding's."""
    left = set(pairs)
    has_unembedding = False
    embedding = None
    for name, tensor in _tensors(folder):
        layer = name.removesuffix(".weight")
        has_unembedding |= layer == "lm_head"
        if layer.endswith("embed_tokens"):
            embedding = tensor
        yield name, _with_update(tensor, pairs.get(layer), scaling)
        left.discard(layer)
    if not has_unembedding and embedding is not None:
        yield "lm_head.weight", _with_update(embedding, pairs.get("lm_head"), scaling)
        left.discard("lm_head")
    if left:
        raise ValueError(f"the model's files have no tensor for the adapter's {min(left)}")


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 it is no dict
                yield name, file.get_tensor(name)


def _with_update(
    tensor: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor] | None, scaling: float
) -> torch.Tensor:
    if pair is None:
        return tensor
    a, b = pair
    return torch.addmm(tensor.to(a.dtype), b, a, alpha=scaling)
