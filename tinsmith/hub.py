"""The Hugging Face hub, at pinned commits, and its failures in plain words."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tinsmith.config import HubData, HubModel
from tinsmith.errors import TinsmithError

_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md"]
_NOT_MODEL_FILES = ["original/*", "onnx/*", "consolidated*"]
_Result = TypeVar("_Result")


def download_model(model: HubModel, directory: Path, download: Path) -> None:
    """Fetch the snapshot into `download`, going on where an earlier try stopped, then move it."""
    from huggingface_hub import snapshot_download

    _plainly(
        lambda: snapshot_download(
            model.name,
            revision=model.revision,
            local_dir=download,
            allow_patterns=_MODEL_FILES,
            ignore_patterns=_NOT_MODEL_FILES,
        ),
        f"model {model.name}",
        "model",
        model.revision,
    )
    shutil.rmtree(download / ".cache", ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(download, directory)


def load_hub_dataset(data: HubData) -> Iterable[dict[str, Any]]:
    """The rows of a dataset's split at its pinned commit."""
    import datasets

    def load() -> Any:
        return datasets.load_dataset(
            data.name, data.subset, split=data.split, revision=data.revision
        )

    try:
        return _plainly(load, f"dataset {data.name}", "data", data.revision)
    except ValueError as error:
        raise TinsmithError(
            f"dataset {data.name} must have the subset {data.subset!r} and the split {data.split!r}"
            f" (config: data.subset, data.split): {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes to the hub: the folder's files with their sizes in bytes, and where to."""

    folder: Path
    name: str
    is_private: bool

    def check(self, is_dry_run: bool) -> None:
        """Refuse before anything is made what the hub would refuse after it."""
        from huggingface_hub import errors, get_token
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
            is_named = "/" in self.name
        except errors.HFValidationError:
            is_named = False
        if not is_named:
            raise TinsmithError(
                "--push takes the repository as OWNER/NAME, of letters, digits, '-', '_' and '.',"
                f" got {self.name!r}"
            )
        if not is_dry_run and get_token() is None:
            raise TinsmithError(
                f"--push needs HF_TOKEN, a token of the hub that may write to {self.name};"
                " --dry-run shows without one what would be uploaded"
            )

    def files(self) -> dict[str, int]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    def push(self) -> str:
        """Make the repository where it is not there, and upload; returns the commit's address."""
        import httpx2
        from huggingface_hub import HfApi, errors

        api = HfApi()
        try:
            api.create_repo(self.name, private=self.is_private, exist_ok=True)
            return api.upload_folder(repo_id=self.name, folder_path=self.folder).commit_url
        except (errors.HfHubHTTPError, ValueError) as error:  # ValueError: the name, or no token
            raise TinsmithError(
                f"{self.folder} could not be pushed to {self.name}: {error}; HF_TOKEN must be a"
                " token that may write there"
            ) from error
        except (httpx2.HTTPError, errors.OfflineModeIsEnabled) as error:
            raise TinsmithError(
                f"{self.folder} could not be pushed to {self.name}, because the hub cannot be"
                f" reached ({error}); check the network (and HF_HUB_OFFLINE, HF_ENDPOINT, proxies)"
            ) from error


def _plainly(fetch: Callable[[], _Result], what: str, section: str, revision: str) -> _Result:
    """`fetch()`, its network and access errors said as what to do about them."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    where = f"config: {section}"
    try:
        return fetch()
    except (errors.RepositoryNotFoundError, DatasetNotFoundError) as error:
        # The library datasets says it in its message alone.
        if not isinstance(error, errors.GatedRepoError) and "is a gated" not in str(error):
            raise TinsmithError(
                f"{what} must exist on the hub, or be visible to HF_TOKEN if it is private, but"
                f" the hub does not show it at revision {revision} ({where}.name)"
            ) from error
        raise TinsmithError(
            f"{what} is gated: ask for access on its page on huggingface.co, then set HF_TOKEN to a"
            f" token of that account, and run again ({where}.name)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise TinsmithError(
            f"{what} must have the pinned commit, got unknown revision {revision}"
            f" ({where}.revision)"
        ) from error
    except (ConnectionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise TinsmithError(
            f"{what} could not be fetched, because the hub cannot be reached; check the network"
            " (and HF_HUB_OFFLINE, HF_ENDPOINT, proxies), or use what needs no download:"
            f" kind path or tiny for a model, kind file or arithmetic for data ({where})"
        ) from error
