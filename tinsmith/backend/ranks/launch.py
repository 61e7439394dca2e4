"""Starting the processes of the other ranks, one for each further GPU, and ending them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from tinsmith.backend.model.base_model import choose_device, choose_dtype
from tinsmith.backend.model.capacity import should_shard
from tinsmith.backend.ranks.group import RankGroup
from tinsmith.backend.ranks.link import Link
from tinsmith.backend.sampling.memory import free_device_bytes
from tinsmith.errors import TinsmithError

LOOPBACK_ONLY = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
# What a worker gets to end by itself when its server ends.
STOP_S = 10
# How many processes there are, by those that start several.
LAUNCHED = {"torchrun": "WORLD_SIZE", "srun": "SLURM_STEP_NUM_TASKS"}


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
            group.close()
            if group.is_broken and kind == "cuda":
                # NCCL would first wait for what is under way, and so for whoever is gone.
                distributed.distributed_c10d._abort_process_group()
            else:
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
