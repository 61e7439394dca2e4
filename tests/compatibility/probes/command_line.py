"""The tinker command: each probe runs it as users do, in a process of its own.

`call(arguments...)` runs the command under test and returns its standard output.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from tests.compatibility.context import MODEL, Context
from tests.compatibility.hub import local_hub


class Command(Protocol):
    def __call__(self, *arguments: str, answer: str = "", **environment: str) -> str: ...


def auth_login(_: Context, call: Command) -> None:
    with TemporaryDirectory() as home:
        call(answer=os.environ["TINKER_API_KEY"] + "\n", HOME=home)


def auth_logout(_: Context, call: Command) -> None:
    from tinker.lib.credentials import JsonCredentialStore, ManualKey

    with TemporaryDirectory() as home:
        store = JsonCredentialStore(Path(home) / ".tinker" / "credentials.json")
        store.add_key("1", ManualKey(key="tml-some-key", name="some key"))
        store.set_default("1")
        assert "Removed credential" in call(HOME=home)
        assert store.get_default_key() is None


def auth_status(_: Context, call: Command) -> None:
    assert "Tinker accessible: yes" in call()


def auth_whoami(_: Context, call: Command) -> None:
    assert "Organization" in call()


def billing_checkpoint_storage(_: Context, call: Command) -> None:
    call()


def billing_usage(_: Context, call: Command) -> None:
    call("2026-01-01", "2026-01-02")


def checkpoint_delete(c: Context, call: Command) -> None:
    path = c.new_state()
    call("--yes", path)
    assert path not in c.checkpoints()


def checkpoint_download(c: Context, call: Command) -> None:
    with TemporaryDirectory() as folder:
        call(c.state, "--output", folder)
        assert any(Path(folder).rglob("adapter_model.safetensors"))


def checkpoint_info(c: Context, call: Command) -> None:
    assert json.loads(call(c.state, format="json"))["tinker_path"] == c.state


def checkpoint_list(c: Context, call: Command) -> None:
    path = c.new_state()
    listed = call("--run-id", c.training.model_id, format="json")
    assert path in [checkpoint["tinker_path"] for checkpoint in json.loads(listed)["checkpoints"]]


def checkpoint_publish(c: Context, call: Command) -> None:
    path = c.new_sampler_weights()
    call(path)
    assert c.checkpoints()[path].public


def checkpoint_push_hf(c: Context, call: Command) -> None:
    with local_hub() as (address, received):
        call(c.state, "--repo", "me/adapter", HF_ENDPOINT=address, HF_TOKEN="hf_some")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(received)


def checkpoint_set_ttl(c: Context, call: Command) -> None:
    path = c.new_state()
    call(path, "--ttl", "3600")
    assert c.checkpoints()[path].expires_at is not None


def checkpoint_unpublish(c: Context, call: Command) -> None:
    path = c.new_sampler_weights()
    c.rest.publish_checkpoint_from_tinker_path(path).result()
    call(path)
    assert not c.checkpoints()[path].public


def model_list(_: Context, call: Command) -> None:
    assert MODEL in call()


def run_info(c: Context, call: Command) -> None:
    assert c.training.model_id in call(c.training.model_id)


def run_list(c: Context, call: Command) -> None:
    assert c.training.model_id in call("--limit", "1000", format="json")


def session_export_trace(c: Context, call: Command) -> None:
    call(c.session_id, "--url-only")


def version(_: Context, call: Command) -> None:
    import tinker

    assert tinker.__version__ in call()
