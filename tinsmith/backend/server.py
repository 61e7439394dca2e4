"""A server's life: load the models, listen, say so, stop cleanly."""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import structlog
import torch

from tinsmith.backend.core import Core
from tinsmith.backend.engine import Engine
from tinsmith.backend.futures import Failure, Promises
from tinsmith.backend.listening import listen, listening_socket, stop_when_told
from tinsmith.backend.logs import configure_logs
from tinsmith.backend.metrics import Metrics
from tinsmith.backend.model.activations import free_for_activations
from tinsmith.backend.model.base_model import BaseModel, load_base_models
from tinsmith.backend.model.check import check_model
from tinsmith.backend.model.loss_choice import check_substitutes
from tinsmith.backend.ranks.group import RankGroup
from tinsmith.backend.ranks.launch import check_launch, running_ranks
from tinsmith.backend.sampling.interface import Sampling
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.backend.sampling.snapshots import Snapshots
from tinsmith.backend.seeds import Seeds
from tinsmith.backend.sequencer import Sequencer
from tinsmith.backend.storage.expiry import expiring_checkpoints
from tinsmith.backend.storage.store import Store
from tinsmith.backend.vllm_sampler.launch import check_place
from tinsmith.backend.vllm_sampler.pool import VllmPool
from tinsmith.backend.wire.app import make_app
from tinsmith.backend.wire.traffic.recorder import opened_recording
from tinsmith.settings import ServerSettings

# On a CPU larger products bring little beyond a few groups of completions, and activations cost
# memory.
TOKEN_BUDGET = {"cpu": 2304, "cuda": 4096}
HOST = socket.gethostname()
log = structlog.stdlib.get_logger(__name__)


def serve(
    settings: ServerSettings, origins: Mapping[str, str], *, ignores_sigterm: bool = False
) -> None:
    """Serve until SIGINT or, unless a server that is up ignores it, SIGTERM. The port is taken
    before the models are loaded, so that a port in use is said at once. `origins` says of the
    settings where they come from."""
    stop_when_told()
    configure_logs(settings.log_format, settings.log_level, settings.api_key)
    check_substitutes(settings.substitutes)
    check_launch(os.environ)
    with listening_socket(settings) as listener, opened_recording(settings.record) as recording:
        for name, origin in origins.items():
            log.info("setting", name=name, value=getattr(settings, name), origin=origin)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        with running_core(settings) as core, expiring_checkpoints(core.store):
            app = make_app(core, settings.api_key, recording)
            stopped = Failure("the server was stopped", "server")
            listen(
                app,
                listener,
                ", ".join(core.bases),
                lambda: core.promises.close(stopped),
                ignores_sigterm=ignores_sigterm,
            )


@contextmanager
def running_core(settings: ServerSettings) -> Iterator[Core]:
    """Everything of a server but its HTTP face, at work as long as the block."""
    if settings.sampler == "vllm":  # refused before minutes are spent on loading
        check_place(settings)
    with (
        running_ranks(
            settings.models,
            settings.device,
            settings.dtype,
            settings.num_gpus,
            settings.threads,
            settings.shard_base_model,
        ) as ranks,
        _working_core(settings, ranks) as core,
    ):
        yield core


@contextmanager
def _working_core(settings: ServerSettings, ranks: RankGroup | None) -> Iterator[Core]:
    # In a thread that ends: OpenMP counts the helpers of every thread that ever computed, and once
    # they outnumber the cores it puts them to sleep after each operation, at twice the time.
    with ThreadPoolExecutor(1) as loader:
        bases = loader.submit(_load, settings, ranks).result()
    store = Store(Path(settings.store))
    folder = store.directory / "snapshots"
    remove_left_snapshots(folder)
    snapshots = Snapshots(folder / f"{HOST}-{os.getpid()}")
    device = next(iter(bases.values())).device
    given = settings.token_budget
    token_budget = TOKEN_BUDGET[device.type] if given == "auto" else given
    promises, metrics = Promises(), Metrics()
    try:
        with _sampling(settings, bases, snapshots, token_budget) as pool:
            pool.make_room()  # so that what is free is what the trainer will find
            engine = Engine(pool, metrics, lambda error: promises.close(_engine_stopped(error)))
            engine.start()
            if ranks is not None:
                ranks.when_one_dies(engine.expect_end)
            try:
                yield Core(
                    bases=bases,
                    store=store,
                    pool=pool,
                    engine=engine,
                    settings=settings,
                    seeds=Seeds(settings.seed),
                    token_budget=token_budget,
                    promises=promises,
                    sequencer=Sequencer(promises),
                    metrics=metrics,
                    activation_bytes={
                        name: _activation_bytes(settings, base) for name, base in bases.items()
                    },
                    ranks=ranks,
                )
            finally:
                engine.stop()
    finally:
        snapshots.remove_all()
        store.close()


def _activation_bytes(settings: ServerSettings, base: BaseModel) -> int:
    if settings.activation_memory_gb == "auto":
        # On a CPU the ranks have one memory between them.
        sharers = settings.num_gpus if base.device.type == "cpu" else 1
        return free_for_activations(base, sharers)
    return int(1e9 * settings.activation_memory_gb)


@contextmanager
def _sampling(
    settings: ServerSettings,
    bases: Mapping[str, BaseModel],
    snapshots: Snapshots,
    token_budget: int,
) -> Iterator[Sampling]:
    """The sampler that the settings choose, as long as the block."""
    local = SamplerPool(snapshots, token_budget, records_steps=settings.decode_graphs)
    if settings.sampler == "transformers":
        yield local
        return
    pool = VllmPool(bases, settings, snapshots, local)
    try:
        with ThreadPoolExecutor(1) as starter:  # it computes, to compare
            starter.submit(pool.start).result()
        yield pool
    finally:
        pool.stop()


def _engine_stopped(error: BaseException) -> Failure:
    return Failure(
        f"the server's engine has stopped, {type(error).__name__}: {error}; restart the server and "
        "go on from a checkpoint with create_training_client_from_state_with_optimizer",
        "server",
    )


def _load(settings: ServerSettings, ranks: RankGroup | None) -> dict[str, BaseModel]:
    mesh = None if ranks is None else ranks.mesh
    bases = load_base_models(settings.models, settings.device, settings.dtype, mesh)
    for base in bases.values():
        if base.shards is not None:
            assert ranks is not None
            base.shards.summon = partial(ranks.attend_forward, base.name)
        check_model(base)
    return bases


def remove_left_snapshots(folder: Path) -> None:
    """Remove what servers of this machine left when they were killed."""
    for left in folder.glob(f"{HOST}-*"):
        pid = left.name.removeprefix(f"{HOST}-")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
