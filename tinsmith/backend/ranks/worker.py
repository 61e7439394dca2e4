"""The program of every rank but the first: it scores what it is sent, and keeps no state of its own
but the adapters' weights as they were last sent.

`python -m tinsmith.backend.ranks.worker FD` reads its orders from the socket at descriptor FD and
ends when the other end is closed, so that it never outlives its server.
"""

import signal
import socket
import sys
import traceback
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from tinsmith.backend.model.adapter import (
    AdapterWeights,
    LoraSettings,
    attach_adapter,
    lora_pairs,
    set_adapter_weights,
)
from tinsmith.backend.model.base_model import BaseModel, load_base_models
from tinsmith.backend.model.sharding import LostRanks, ShardedLayers
from tinsmith.backend.ranks.link import Arrays, Command, Link
from tinsmith.backend.ranks.work import Work, score_work, sum_gradients
from tinsmith.errors import TinsmithError


class Worker:
    """The base models of one rank and the adapters on them."""

    def __init__(self, bases: dict[str, BaseModel]) -> None:
        self._bases = bases
        self._modules: dict[int, tuple[PreTrainedModel, LoraSettings]] = {}
        self._shards: dict[int, ShardedLayers | None] = {}

    def share(self, command: Command, _: Arrays) -> None:
        """A new adapter."""
        settings = LoraSettings(**command["settings"])
        base = self._bases[command["base_model"]]
        self._modules[command["model"]] = attach_adapter(base, settings, seed=0), settings
        self._shards[command["model"]] = base.shards

    def attend_forward(self, command: Command, _: Arrays) -> None:
        """Take part in a forward of the first rank."""
        shards = self._bases[command["base_model"]].shards
        assert shards is not None
        shards.attend_forward()

    def weights(self, command: Command, arrays: Arrays) -> None:
        """The weights of an adapter as they are now."""
        module, settings = self._modules[command["model"]]
        names = [name.removesuffix(".A") for name in arrays if name.endswith(".A")]
        pairs = {
            name: tuple(torch.from_numpy(arrays[f"{name}.{side}"]) for side in "AB")
            for name in names
        }
        set_adapter_weights(module, AdapterWeights(settings, pairs))  # pyright: ignore[reportArgumentType]

    def score(self, command: Command, arrays: Arrays) -> tuple[Command, dict[str, np.ndarray]]:
        """Score a share; its gradient stays with the adapter until the first rank asks for it."""
        work = Work.decode(command["work"], arrays)
        module = self._modules[command["model"]][0]
        scored = score_work(module, self._shards[command["model"]], work)
        answer = {"loss": scored.loss, "token_budget": scored.token_budget}
        answer["memory_bytes"] = scored.memory_bytes
        return answer, {str(i): part for i, part in enumerate(scored.logprobs)}

    def reduce(self, command: Command, _: Arrays) -> None:
        """Hand in the gradient."""
        module = self._modules[command["model"]][0]
        sum_gradients([p for pair in lora_pairs(module) for p in pair[1:]], is_first=False)

    def drop(self, command: Command, _: Arrays) -> None:
        """Forget the gradient: another rank failed."""
        self._modules[command["model"]][0].zero_grad(set_to_none=True)

    def free(self, command: Command, _: Arrays) -> None:
        """Forget an adapter."""
        del self._modules[command["model"]], self._shards[command["model"]]


def main(descriptor: int) -> None:
    """Serve the first rank until it is gone; SIGTERM, which SLURM sends to every process of a job,
    ends none of them before the job has saved, and Ctrl-C none before the server has stopped."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link(socket.socket(fileno=descriptor))
    order, _ = link.receive()
    try:
        worker = _start(link, order)
    except Exception as error:  # the first rank tells the user
        link.send({"error": str(error), "is_users": isinstance(error, TinsmithError)})
        raise SystemExit(1) from error
    link.send({"error": None})
    while True:
        try:
            command, arrays = link.receive()
        except EOFError:
            return
        _answer(link, worker, command, arrays)


def _start(link: Link, order: dict[str, Any]) -> Worker:
    if order["threads"] is not None:
        torch.set_num_threads(order["threads"])
    device = torch.device(order["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    link.send({})
    distributed.init_process_group(rank=order["rank"], **order["meeting"])
    shape = (order["meeting"]["world_size"],)
    mesh = init_device_mesh(device.type, shape) if order["is_sharded"] else None
    link.receive()  # its turn to load
    return Worker(load_base_models(order["models"], str(device), order["dtype"], mesh))


def _answer(link: Link, worker: Worker, command: Command, arrays: Arrays) -> None:
    """Obey a command. Only `score` is answered: it alone can go wrong by what a client sent."""
    name = command["name"]
    if name != "score":
        getattr(worker, name)(command, arrays)
        return
    try:
        answer, results = worker.score(command, arrays)
    except LostRanks:  # the first rank sees this process end
        raise
    except Exception as error:
        is_users = isinstance(error, TinsmithError)
        if not is_users:
            traceback.print_exc()
        link.send({"error": f"{type(error).__name__}: {error}", "is_users": is_users})
        return
    link.send({"error": None, **answer}, results)


if __name__ == "__main__":
    main(int(sys.argv[1]))
