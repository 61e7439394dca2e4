"""What a server finds and clears up when it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinsmith.backend.server import HOST, remove_left_snapshots, running_core
from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings


def test_only_what_dead_servers_of_this_machine_left_is_removed(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f"{HOST}-{gone.pid}"
    kept = [tmp_path / f"{HOST}-{os.getpid()}", tmp_path / f"another-host-{gone.pid}"]
    kept.append(tmp_path / f"{HOST}-01-{gone.pid}")
    for folder in (left, *kept):
        (folder / "snapshot").mkdir(parents=True)
    remove_left_snapshots(tmp_path)
    assert not left.exists()
    assert all((folder / "snapshot").is_dir() for folder in kept)


def test_an_engine_that_has_no_place_is_refused_before_a_model_is_loaded(tmp_path: Path):
    settings = ServerSettings(
        models={"m": str(tmp_path / "missing")},
        api_key="tml-x",
        device="cpu",
        store=str(tmp_path / "store"),
        sampler="vllm",
        vllm_python=str(tmp_path / "nowhere"),
    )
    with pytest.raises(TinsmithError, match=r"there is no .*nowhere"), running_core(settings):
        pass
