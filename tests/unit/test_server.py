"""What a server finds and clears up when it starts."""

import os
import subprocess
import sys
from pathlib import Path

from tinsmith.backend.server import HOST, remove_left_snapshots


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
