"""The first rank's side: it starts the others, shares out the data and adds up the gradients."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import count
from math import ceil
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import PreTrainedModel

from tinsmith.backend.model.adapter import AdapterWeights, LoraSettings, lora_pairs
from tinsmith.backend.model.base_model import choose_device, choose_dtype
from tinsmith.backend.model.capacity import should_shard
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.sharding import ShardedLayers
from tinsmith.backend.ranks.link import Arrays, Command, Link
from tinsmith.backend.ranks.shares import split
from tinsmith.backend.ranks.work import Work, score_work, sum_gradients
from tinsmith.backend.sampling.memory import free_device_bytes
from tinsmith.errors import TinsmithError

LOOPBACK_ONLY = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
# What a worker gets to end by itself when its server ends.
STOP_S = 10
# How many processes there are, by those that start several.
LAUNCHED = {"torchrun": "WORLD_SIZE", "srun": "SLURM_STEP_NUM_TASKS"}


class RankGroup:
    """The ranks of a server, this process being the first. The engine's thread alone calls it."""

    def __init__(
        self,
        links: Sequence[Link],
        processes: Sequence[subprocess.Popen[bytes]],
        mesh: DeviceMesh | None = None,
    ) -> None:
        """`mesh` is given where the ranks share out the base models."""
        self._links = links
        self._processes = processes
        self.mesh = mesh
        self._numbers = count()

    def start(self, rank: int, order: Command) -> None:
        """Tell a rank who it is; returns when it is about to meet the others."""
        self._send(rank, order)
        self._receive(rank)

    def load(self) -> None:
        """Returns when all other ranks have their base models, or says which could not have them.

        Models that are shared out are whole in main memory before: one rank loads after the other.
        """
        ranks = range(1, 1 + len(self._links))
        for turn in [[rank] for rank in ranks] if self.mesh else [ranks]:
            for rank in turn:
                self._send(rank, {"name": "load"})
            for rank in turn:
                answer, _ = self._receive(rank)
                if answer["error"] is not None:
                    raise TinsmithError(f"on rank {rank}: {answer['error']}")

    def share(self, base_model: str, settings: LoraSettings) -> int:
        """Make an adapter known to all ranks; returns its number among them."""
        number = next(self._numbers)
        self._tell_all("share", model=number, base_model=base_model, settings=asdict(settings))
        return number

    def attend_forward(self, base_model: str) -> None:
        """Let every rank take part in a forward of this one over a base model that is sharded."""
        self._tell_all("attend_forward", base_model=base_model)

    def send_weights(self, number: int, weights: AdapterWeights) -> None:
        """Let every rank go on with these weights."""
        arrays = {
            f"{name}.{side}": tensor.cpu().numpy()
            for name, pair in weights.pairs.items()
            for side, tensor in zip("AB", pair, strict=True)
        }
        self._tell_all("weights", arrays, model=number)

    def free(self, number: int) -> None:
        """Let every rank forget an adapter."""
        self._tell_all("free", model=number)

    def score(
        self,
        number: int,
        module: PreTrainedModel,
        shards: ShardedLayers | None,
        data: Sequence[Datum],
        choice: LossChoice,
        token_budget: int,
        forward_only: bool,
        min_micro_batches: int,
        memory_bytes: int | None,
    ) -> Scored:
        """`model.score.score`, shared out by tokens: loss and gradient are sums over all ranks, and
        so is the number of micro-batches.

        An error on any rank is raised once all have answered; no gradient is added then.
        """
        shares = split([len(datum.tokens) for datum in data], 1 + len(self._links))
        floor = ceil(min_micro_batches / len(shares))
        own, *others = [
            Work(
                rows,
                [data[row] for row in rows],
                choice,
                token_budget,
                forward_only,
                floor,
                memory_bytes,
            )
            for rows in shares
        ]
        for rank, work in enumerate(others, 1):
            command, arrays = work.encode()
            self._send(rank, {"name": "score", "model": number, "work": command}, arrays)
        parts = self._answers(lambda: score_work(module, shards, own), others, number)
        if not forward_only:
            self._tell_all("reduce", model=number)
            sum_gradients([p for pair in lora_pairs(module) for p in pair[1:]], is_first=True)
        logprobs: list[np.ndarray] = [np.empty(0)] * len(data)
        for rows, part in zip(shares, parts, strict=True):
            for row, array in zip(rows, part.logprobs, strict=True):
                logprobs[row] = array
        return Scored(
            sum(part.loss for part in parts),
            logprobs,
            _least(part.token_budget for part in parts),
            _least(part.memory_bytes for part in parts),
        )

    def _answers(
        self, score_own: Callable[[], Scored], others: Sequence[Work], number: int
    ) -> list[Scored]:
        """Everybody's part, this rank's first; raised only when nobody is at work any more."""
        parts: list[Scored] = []
        errors: list[Exception] = []
        try:
            parts.append(score_own())
        except Exception as error:
            errors.append(error)
        for rank, work in enumerate(others, 1):
            answer, arrays = self._receive(rank)
            if answer["error"] is None:
                logprobs = [arrays[str(i)] for i in range(len(work.rows))]
                left = answer["token_budget"], answer["memory_bytes"]
                parts.append(Scored(answer["loss"], logprobs, *left))
            else:
                kind = TinsmithError if answer["is_users"] else RuntimeError
                errors.append(kind(f"on rank {rank}: {answer['error']}"))
        if errors:
            self._tell_all("drop", model=number)
            raise errors[0]
        return parts

    def _tell_all(self, name: str, arrays: Arrays | None = None, **more: object) -> None:
        for rank in range(1, 1 + len(self._links)):
            self._send(rank, {"name": name, **more}, arrays)

    def _send(self, rank: int, command: Command, arrays: Arrays | None = None) -> None:
        try:
            self._links[rank - 1].send(command, arrays)
        except OSError as error:
            raise self._gone(rank) from error

    def _receive(self, rank: int) -> tuple[Command, dict[str, np.ndarray]]:
        try:
            return self._links[rank - 1].receive()
        except (EOFError, OSError) as error:
            raise self._gone(rank) from error

    def _gone(self, rank: int) -> RuntimeError:
        code = self._processes[rank - 1].wait()
        return RuntimeError(
            f"the training process of rank {rank} has ended (exit code {code}; its last words are "
            "in the server's log); restart the server and go on from a checkpoint"
        )


def _least(left: Iterable[int | None]) -> int | None:
    return min((size for size in left if size is not None), default=None)


@contextmanager
def running_ranks(
    models: Mapping[str, str],
    device: str,
    dtype: str,
    num_gpus: int,
    threads: int | None,
    shard_base_model: Any = "auto",
    free_bytes: Callable[[torch.device], int] = free_device_bytes,
    program: str = "tinsmith.backend.ranks.worker",
) -> Iterator[RankGroup | None]:
    """Start ranks 1 to num_gpus - 1, each on the CUDA device of its number, or all on the CPU;
    None where there is one rank alone. A model that does not fit is refused before. `program` is
    the module that the others run."""
    kind = check_devices(device, num_gpus)
    place = choose_device(device)
    is_sharded = should_shard(
        models, place, choose_dtype(dtype, place), num_gpus, shard_base_model, free_bytes
    )
    if num_gpus == 1:
        yield None
        return
    with TemporaryDirectory(prefix="tinsmith-ranks-") as folder, ExitStack() as stack:
        meeting = {
            "backend": BACKENDS[kind],
            # A file of ours alone: PyTorch's TCP store would listen on every network.
            "init_method": f"file://{folder}/rendezvous",
            "world_size": num_gpus,
        }
        order = {"models": dict(models), "dtype": dtype, "threads": threads, "meeting": meeting}
        order["is_sharded"] = is_sharded
        workers = [stack.enter_context(_worker(program)) for _ in range(1, num_gpus)]
        links, processes = zip(*workers, strict=True)
        group = RankGroup(links, processes)
        for rank in range(1, num_gpus):
            own = f"cuda:{rank}" if kind == "cuda" else "cpu"
            group.start(rank, {**order, "rank": rank, "device": own})
        os.environ.update(LOOPBACK_ONLY)
        distributed.init_process_group(rank=0, **meeting)
        try:
            group.mesh = init_device_mesh(kind, (num_gpus,)) if is_sharded else None
            group.load()
            yield group
        finally:
            distributed.destroy_process_group()


def check_launch(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several servers that torchrun or srun started for the ranks of one."""
    for program, variable in LAUNCHED.items():
        number = environment.get(variable, "1")
        if number != "1":
            raise TinsmithError(
                f"{program} has started {number} servers ({variable}); start one, which starts the "
                f"processes of --num-gpus {number} itself: {program} with one task, or without it"
            )


def check_devices(device: str, num_gpus: int) -> str:
    """The kind of device that the ranks run on, or why there cannot be so many."""
    kind = choose_device(device).type
    if num_gpus == 1:
        return kind
    if device.startswith("cuda:"):
        raise TinsmithError(
            f"--num-gpus {num_gpus} takes the devices cuda:0 to cuda:{num_gpus - 1}, so --device "
            f"must be auto, cuda or cpu, got {device!r}; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    if kind == "cuda" and torch.cuda.device_count() < num_gpus:
        raise TinsmithError(
            f"--num-gpus {num_gpus}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; "
            "ask for as many, or look at CUDA_VISIBLE_DEVICES and what the scheduler gave"
        )
    return kind


@contextmanager
def _worker(program: str) -> Iterator[tuple[Link, subprocess.Popen[bytes]]]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", program, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | LOOPBACK_ONLY,
        )
    link = Link(ours)
    try:
        yield link, process
    finally:
        link.close()  # which tells the worker to end
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:  # it computes, or waits for a rank that is gone
            process.kill()
            process.wait()
