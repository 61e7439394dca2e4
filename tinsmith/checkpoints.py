"""Checkpoints of a stage: what checkpoint.json says, and the weights as files."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import tinker

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.files import new_directory, sha256, write_json
from tinsmith.remote import rest_client

WEIGHTS_FILE = "adapter_model.safetensors"
# Without a byte, not for a file.
FETCH_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the backend keeps a checkpoint: `state` to train on from, `sampler` to sample."""

    state: str
    sampler: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The end of a stage: checkpoint.json."""

    stage: str
    run: str
    seed: int
    base_model: str
    lora_rank: int
    model_id: str
    step: int
    checkpoints: Paths
    weights_sha256: str

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**fields | {"checkpoints": Paths(**fields["checkpoints"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TinsmithError(
                f"{path} must be the checkpoint.json of a stage: {error}"
            ) from error

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def open_training_client(
    service: tinker.ServiceClient,
    base_model: str,
    lora: config.Lora,
    seed: int,
    previous: Checkpoint | None,
) -> tinker.TrainingClient:
    """On from the stage before with a fresh optimizer, or, for the first stage, a new adapter."""
    if previous is not None:
        with explained(f"loading {previous.checkpoints.state}"):
            return service.create_training_client_from_state(previous.checkpoints.state).result()
    return service.create_lora_training_client(
        base_model,
        rank=lora.rank,
        seed=seed,
        train_mlp=lora.train_mlp,
        train_attn=lora.train_attn,
        train_unembed=lora.train_unembed,
    ).result()


def resume_training_client(
    service: tinker.ServiceClient, state: str, work: Path
) -> tinker.TrainingClient:
    """On from a working checkpoint, optimizer and all."""
    try:
        return service.create_training_client_from_state_with_optimizer(state).result()
    except tinker.TinkerError as error:
        raise TinsmithError(
            f"the working checkpoint {state}, which {work / 'progress.json'} names, could not be"
            f" loaded ({error}): put the backend's store back, or delete {work} to start the stage"
            " again"
        ) from error


def fetch_weights(training_client: tinker.TrainingClient, name: str, target: Path) -> str:
    """Write the adapter's files to the directory `target`; return the digest of its weights."""
    path = training_client.save_weights_external(name).result().path
    urls = rest_client().get_external_weights_urls(path).result().urls
    with new_directory(target) as draft:
        for file, url in urls.items():
            fetch(url, draft / _relative(file))
    return weights_sha256(target)


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of a PEFT folder's tensors, as `sha256sum` prints it."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise TinsmithError(f"{folder} must hold an adapter's {WEIGHTS_FILE}, but has none")
    return sha256(file)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn a refusal of the backend into a message that says what was being done."""
    try:
        yield
    except tinker.TinkerError as error:
        raise TinsmithError(f"{what} failed: {error}") from error


def fetch(url: str, file: Path, timeout_s: float = FETCH_TIMEOUT_S) -> None:
    """Write what a link leads to, whole; the link is a secret, which no message repeats."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response, file.open("wb") as target:
            shutil.copyfileobj(response, target)
            announced = response.headers["Content-Length"]
    except OSError as error:
        raise TinsmithError(f"fetching the weights file {file.name} failed: {error}") from error
    size = file.stat().st_size
    if announced is not None and size != int(announced):
        raise TinsmithError(
            f"fetching the weights file {file.name} failed: its connection was cut after {size} of"
            f" {announced} bytes"
        )


def _relative(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise TinsmithError(f"the backend names a weights file outside its folder: {name!r}")
    return path
