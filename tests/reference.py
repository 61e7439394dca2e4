"""Qwen3 and Llama with LoRA in float64, written down from the papers' formulas.

Nothing of the backend, of transformers' model code or of peft is used: weights come straight
from the safetensors file, so that agreement means something.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Pairs = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Reference:
    """A model's weights in float64 and its config."""

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @staticmethod
    def load(directory: Path) -> "Reference":
        weights = {k: v.double() for k, v in load_file(directory / "model.safetensors").items()}
        if "lm_head.weight" not in weights:  # tied
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        return Reference(weights, json.loads((directory / "config.json").read_text()))

    def logits(self, tokens_T: Iterable[int], pairs: Pairs | None = None, scaling: float = 0.0):
        """Logits [T, V]; the adapted layers compute with W + scaling B A."""
        return _Pass(self, pairs or {}, scaling).logits(torch.tensor(list(tokens_T)))

    def logprobs(
        self,
        tokens_T: Iterable[int],
        targets_T: Iterable[int],
        pairs: Pairs | None = None,
        scaling: float = 0.0,
    ) -> Tensor:
        """log p(target_t | tokens up to t), [T]."""
        logprobs_TV = self.logits(tokens_T, pairs, scaling).log_softmax(-1)
        return logprobs_TV.gather(1, torch.tensor(list(targets_T))[:, None])[:, 0]


def trainable(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Float64 leaves with gradients, from (A, B) of any kind."""
    return {
        name: (_leaf(a), _leaf(b))
        for name, (a, b) in pairs.items()
    }  # fmt: skip


def read_adapter(directory: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """(A, B) by layer, and the scaling alpha / r, of a PEFT adapter on the disk."""
    tensors = load_file(directory / "adapter_model.safetensors")
    config = json.loads((directory / "adapter_config.json").read_text())
    suffix = ".lora_A.weight"
    names = [key.removesuffix(suffix) for key in tensors if key.endswith(suffix)]
    pairs = {
        name.removeprefix("base_model.model."): (
            tensors[f"{name}.lora_A.weight"].double(),
            tensors[f"{name}.lora_B.weight"].double(),
        )
        for name in names
    }
    return pairs, config["lora_alpha"] / config["r"]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().double().requires_grad_(True)


@dataclass(frozen=True, slots=True)
class _Pass:
    model: Reference
    pairs: Pairs
    scaling: float

    def logits(self, tokens_T: Tensor) -> Tensor:
        x_TD = self.model.weights["model.embed_tokens.weight"][tokens_T]
        for i in range(self.model.config["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            x_TD = x_TD + self.attention(
                f"{layer}.self_attn", self.norm(f"{layer}.input_layernorm", x_TD)
            )
            x_TD = x_TD + self.mlp(
                f"{layer}.mlp", self.norm(f"{layer}.post_attention_layernorm", x_TD)
            )
        return self.linear("lm_head", self.norm("model.norm", x_TD))

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.model.weights[f"{name}.weight"]
        if name in self.pairs:
            a, b = self.pairs[name]
            weight = weight + self.scaling * (b @ a)
        return x @ weight.T

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.model.config["rms_norm_eps"])
        return x * scale * self.model.weights[f"{name}.weight"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        gate = self.linear(f"{name}.gate_proj", x)
        return self.linear(
            f"{name}.down_proj", gate * torch.sigmoid(gate) * self.linear(f"{name}.up_proj", x)
        )

    def attention(self, name: str, x_TD: Tensor) -> Tensor:
        config = self.model.config
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        dim = config.get("head_dim") or config["hidden_size"] // heads
        size = len(x_TD)
        q_HTD = self.linear(f"{name}.q_proj", x_TD).view(size, heads, dim).transpose(0, 1)
        k_HTD = self.linear(f"{name}.k_proj", x_TD).view(size, kv_heads, dim).transpose(0, 1)
        v_HTD = self.linear(f"{name}.v_proj", x_TD).view(size, kv_heads, dim).transpose(0, 1)
        if f"{name}.q_norm.weight" in self.model.weights:
            q_HTD, k_HTD = self.norm(f"{name}.q_norm", q_HTD), self.norm(f"{name}.k_norm", k_HTD)
        theta = config["rope_parameters"]["rope_theta"]
        q_HTD, k_HTD = _rotate(q_HTD, theta), _rotate(k_HTD, theta)
        out = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores_TT = q_HTD[head] @ k_HTD[shared].T / dim**0.5
            future_TT = torch.ones(size, size, dtype=torch.bool).triu(1)
            out.append(scores_TT.masked_fill(future_TT, -torch.inf).softmax(-1) @ v_HTD[shared])
        return self.linear(f"{name}.o_proj", torch.cat(out, dim=-1))


def _rotate(x_HTD: Tensor, theta: float) -> Tensor:
    """Rotary positions (Su et al. 2021), pairing dimension i with i + D/2."""
    size, dim = x_HTD.shape[1:]
    frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(size, dtype=torch.float64)[:, None] * frequency
    left, right = x_HTD[..., : dim // 2], x_HTD[..., dim // 2 :]
    return torch.cat(
        [left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1
    )
