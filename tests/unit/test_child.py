"""A program of another environment, run as part of a job."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tinsmith.child import TIED, run_child
from tinsmith.errors import TinsmithError

ROOT = Path(__file__).parents[2]
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
JOB = f"""
import os, sys
from pathlib import Path
from tinsmith.child import run_child

run_child([sys.executable, "-c", {SLEEPER!r}], os.environ, Path(sys.argv[1]), "it")
"""


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "said.log"
    job = subprocess.Popen([sys.executable, "-c", JOB, log], cwd=ROOT)
    while not (log.is_file() and log.read_text().endswith("\n")):
        assert job.poll() is None
    child = psutil.Process(int(log.read_text()))
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs([child], timeout=60)
    assert not alive


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    started = tmp_path / "started"
    of_another = [sys.executable, TIED, str(os.getpid() + 1), "touch", str(started)]
    assert subprocess.run(of_another, check=False).returncode == 1
    assert not started.exists()


def test_a_child_reads_what_it_is_answered_and_then_the_end(tmp_path: Path) -> None:
    echo = [sys.executable, "-c", "import sys; print([*sys.stdin], sys.argv[1:])", "a b"]
    run_child(echo, os.environ, tmp_path / "said.log", "it", answer="resume\n")
    assert (tmp_path / "said.log").read_text() == "['resume\\n'] ['a b']\n"


def test_a_child_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    fails = [sys.executable, "-c", "import sys; print('no disk'); sys.exit(3)"]
    with pytest.raises(
        TinsmithError, match=r"it ended with exit code 3: no disk \(log: .*said.log"
    ):
        run_child(fails, os.environ, tmp_path / "said.log", "it")
