"""A rank's part of a forward_backward, as messages and as a computation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.score import score
from tinsmith.backend.model.sharding import ShardedLayers
from tinsmith.backend.ranks.link import Arrays, Command


@dataclass(frozen=True, slots=True)
class Work:
    """The data that one rank scores; `rows` are their places in the client's request."""

    rows: Sequence[int]
    data: Sequence[Datum]
    choice: LossChoice
    token_budget: int
    forward_only: bool
    min_micro_batches: int
    memory_bytes: int | None

    def encode(self) -> tuple[Command, dict[str, np.ndarray]]:
        """As a message."""
        command = {
            "rows": list(self.rows),
            "loss": self.choice.name,
            "settings": dict(self.choice.settings),
            "token_budget": self.token_budget,
            "forward_only": self.forward_only,
            "min_micro_batches": self.min_micro_batches,
            "memory_bytes": self.memory_bytes,
        }
        arrays = {}
        for i, datum in enumerate(self.data):
            arrays[f"{i}.tokens"] = datum.tokens
            arrays[f"{i}.target_tokens"] = datum.target_tokens
            for name, array in datum.loss_inputs.items():
                arrays[f"{i}.inputs.{name}"] = array
        return command, arrays

    @staticmethod
    def decode(command: Command, arrays: Arrays) -> "Work":
        """What `encode` wrote."""
        choice = LossChoice(command["loss"], command["settings"])
        data = [
            Datum(
                arrays[f"{i}.tokens"],
                arrays[f"{i}.target_tokens"],
                {name: arrays[f"{i}.inputs.{name}"] for name in choice.loss.inputs},
            )
            for i in range(len(command["rows"]))
        ]
        return Work(
            command["rows"],
            data,
            choice,
            command["token_budget"],
            command["forward_only"],
            command["min_micro_batches"],
            command["memory_bytes"],
        )


def score_work(module: PreTrainedModel, shards: ShardedLayers | None, work: Work) -> Scored:
    """A rank's own part."""
    return score(
        module,
        work.data,
        work.choice,
        work.token_budget,
        work.forward_only,
        work.rows,
        work.min_micro_batches,
        shards,
        work.memory_bytes,
    )


def sum_gradients(parameters: Sequence[nn.Parameter], is_first: bool) -> None:
    """Add up the ranks' gradients; the first rank has the sum afterwards, the others none."""
    gradients = [_gradient(parameter) for parameter in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.reduce(flat, dst=0)
    start = 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        end = start + gradient.numel()
        parameter.grad = flat[start:end].view_as(gradient) if is_first else None
        start = end


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
