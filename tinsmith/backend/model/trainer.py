"""A training run's model: an adapter, its gradient and its optimizer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tinsmith.backend.model.activations import tokens_within
from tinsmith.backend.model.adapter import (
    AdapterWeights,
    LoraSettings,
    adapter_weights,
    attach_adapter,
    lora_pairs,
    set_adapter_weights,
)
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.score import score
from tinsmith.backend.ranks.group import RankGroup
from tinsmith.errors import TinsmithError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdamParams:
    """One optimizer step, with the fields and defaults of `tinker.AdamParams`."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


@dataclass(frozen=True, slots=True)
class ForwardBackwardResult:
    """Log-probabilities of each datum's targets, in their shape, and metrics named
    `name:reduction`."""

    logprobs: list[np.ndarray]
    metrics: dict[str, float]


class Trainer:
    """Accumulates gradients on an adapter and steps it. Not thread-safe: one worker owns it."""

    def __init__(
        self,
        base: BaseModel,
        settings: LoraSettings,
        seed: int,
        token_budget: int,
        ranks: RankGroup | None = None,
        min_micro_batches: int = 1,
        memory_bytes: int | None = None,
    ) -> None:
        """`ranks`, if there are more than this process, share the work of forward_backward, which
        is cut into `min_micro_batches` or more. The activations of each are to stay within
        `memory_bytes`."""
        self.base = base
        self._min_micro_batches = min_micro_batches
        self.settings = settings
        self._module = attach_adapter(base, settings, seed)
        self._memory_bytes = memory_bytes
        self._token_budget = _affordable(self._module, token_budget, memory_bytes)
        self._parameters = {
            f"{name}.lora_{side}": parameter
            for name, a, b in lora_pairs(self._module)
            for side, parameter in (("A", a), ("B", b))
        }
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=0.0)
        self._ranks = ranks
        self._number = 0 if ranks is None else ranks.share(base.name, settings)
        self._is_current_on_ranks = False

    def close(self) -> None:
        """Free what other ranks hold of this model."""
        if self._ranks is not None:
            self._ranks.free(self._number)

    def weights(self) -> AdapterWeights:
        """A copy of the present weights."""
        return adapter_weights(self._module, self.settings)

    def forward_backward(
        self, data: Sequence[Datum], choice: LossChoice, forward_only: bool
    ) -> ForwardBackwardResult:
        """Score `data` and add the gradient; if that fails, the gradient stays as it was."""
        accumulated = {name: p.grad for name, p in self._parameters.items()}
        self._optimizer.zero_grad(set_to_none=True)
        try:
            scored = self._score(data, choice, forward_only)
        except BaseException:
            self._restore_gradient(accumulated)
            raise
        self._add_gradient(accumulated)
        if scored.token_budget is not None:
            self._token_budget = max(1, scored.token_budget)
        if scored.memory_bytes is not None:
            self._memory_bytes = scored.memory_bytes
        metrics = {
            "loss:sum": scored.loss,
            "num_tokens:sum": float(sum(len(datum.tokens) for datum in data)),
            **_policy_metrics(data, scored.logprobs),
        }
        if choice.substitutes is not None:
            metrics["substituted_loss:max"] = 1.0
        return ForwardBackwardResult(scored.logprobs, metrics)

    def _score(self, data: Sequence[Datum], choice: LossChoice, forward_only: bool) -> Scored:
        if self._ranks is None:
            return score(
                self._module,
                data,
                choice,
                self._token_budget,
                forward_only,
                min_micro_batches=self._min_micro_batches,
                memory_bytes=self._memory_bytes,
            )
        if not self._is_current_on_ranks:
            self._ranks.send_weights(self._number, self.weights())
            self._is_current_on_ranks = True
        return self._ranks.score(
            self._number,
            self._module,
            self.base.shards,
            data,
            choice,
            self._token_budget,
            forward_only,
            self._min_micro_batches,
            self._memory_bytes,
        )

    def optim_step(self, params: AdamParams) -> dict[str, float]:
        """AdamW on the accumulated gradient, which is then dropped.

        g <- g * min(1, clip / |g|) if clip > 0; then Loshchilov & Hutter 2019, algorithm 2.
        """
        gradients = [_filled_gradient(parameter) for parameter in self._parameters.values()]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise TinsmithError(
                f"optim_step: the gradient's norm is {float(norm)}; the step was not taken and the "
                "gradient was dropped; lower the learning rate or check the data"
            )
        if params.grad_clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                self._parameters.values(), params.grad_clip_norm, norm
            )
        self._optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        self._optimizer.step()
        self._is_current_on_ranks = False
        self._optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": float(norm), "learning_rate": params.learning_rate}

    def save(self, directory: Path, base_model: str) -> None:
        """Write the adapter and the optimizer's state; a pending gradient is not part of it."""
        self.weights().save(directory, base_model)
        state: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"{name}.{key}"] = value.cpu().contiguous()
        save_file(state, directory / "optimizer.safetensors")

    def load(self, directory: Path, with_optimizer: bool) -> None:
        """Take the weights, and if asked the optimizer's state, that `save` wrote; a pending
        gradient and the moments of other weights are dropped."""
        weights = AdapterWeights.load(directory, self.settings)
        state = load_file(directory / "optimizer.safetensors") if with_optimizer else {}
        set_adapter_weights(self._module, weights)
        self._is_current_on_ranks = False
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            keys = [key for key in state if key.startswith(f"{name}.")]
            if keys:
                self._optimizer.state[parameter] = {
                    key.removeprefix(f"{name}."): _on_device(key, state[key], parameter)
                    for key in keys
                }

    def _add_gradient(self, accumulated: dict[str, Tensor | None]) -> None:
        for name, parameter in self._parameters.items():
            before = accumulated[name]
            if before is not None and parameter.grad is not None:
                parameter.grad.add_(before)
            elif before is not None:
                parameter.grad = before

    def _restore_gradient(self, accumulated: dict[str, Tensor | None]) -> None:
        for name, parameter in self._parameters.items():
            parameter.grad = accumulated[name]


def _affordable(module: PreTrainedModel, token_budget: int, memory_bytes: int | None) -> int:
    """The token budget, lowered to what `memory_bytes` are predicted to hold."""
    if memory_bytes is None or (fits := tokens_within(module, memory_bytes)) >= token_budget:
        return token_budget
    log.warning(
        "activations may take %.3g GB, which is predicted to hold %d tokens: the token budget is "
        "lowered to that from %d (--activation-memory-gb)",
        memory_bytes / 1e9,
        fits,
        token_budget,
    )
    return fits


def _filled_gradient(parameter: torch.nn.Parameter) -> Tensor:
    """The gradient of an empty sum is zero: momentum and weight decay go on."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _on_device(key: str, value: Tensor, parameter: torch.nn.Parameter) -> Tensor:
    # AdamW keeps its step counter on the CPU.
    return value if key.endswith(".step") else value.to(parameter.device)


def _policy_metrics(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> dict[str, float]:
    """For losses with sampling log-probabilities: mean of log q - log p over acting tokens.

    An estimate of KL(sampler || trainer) in nats; the client averages it over chunks.
    """
    if "advantages" not in data[0].loss_inputs:
        return {}
    acting = [datum.loss_inputs["advantages"] != 0 for datum in data]
    gaps = [
        (datum.loss_inputs["logprobs"] - ours)[mask]
        for datum, ours, mask in zip(data, logprobs, acting, strict=True)
    ]
    gap_N = np.concatenate(gaps)
    return {"kl_sample_train:mean": float(gap_N.mean()) if len(gap_N) else 0.0}
