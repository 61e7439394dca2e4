"""run_metadata.json, and how a job ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinsmith.files import sha256
from tinsmith.metadata import describe_file, git_commit, package_versions, recorded_environment

ROOT = Path(__file__).parents[2]
JOB = """
import sys, time
from pathlib import Path
from tinsmith.config import DataSettings, ArithmeticData
from tinsmith.errors import TinsmithError
from tinsmith.job import job

settings = DataSettings(data=ArithmeticData(kind="arithmetic"))
with job(
    rule="some_rule", log=Path("logs/job.log"), metadata=Path("out/run_metadata.json"),
    settings=settings, inputs={"given": Path("given.txt")}, outputs={"made": Path("made")},
    seeds={"run": 7},
):
    try:
        BODY
    finally:
        Path("cleaned").touch()
"""


def run_job(body: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "given.txt").write_text("given")
    program = JOB.replace("BODY", body)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_records_all_that_it_depended_on(tmp_path: Path) -> None:
    body = 'Path("made").mkdir(); Path("made/a").write_text("1")'
    done = run_job(body, tmp_path, TINKER_API_KEY="tml-secret", TINKER_BACKEND="local", MY="x")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/run_metadata.json").read_text()
    record = json.loads(text)
    assert record["rule"] == "some_rule"
    assert record["settings"]["data"]["kind"] == "arithmetic"
    assert record["seeds"] == {"run": 7}
    assert record["started"] < record["ended"]
    assert 0 < record["set_up_s"] < record["duration_s"]
    assert record["kept_server"] is None
    assert record["peak_memory_bytes"]["process"] > 1e6
    assert record["inputs"]["given"] == {
        "path": "given.txt",
        "size_bytes": 5,
        "sha256": sha256(tmp_path / "given.txt"),
    }
    assert record["outputs"]["made"]["num_files"] == 1
    assert record["packages"] == package_versions()
    assert record["machine"]["num_cores"] == os.cpu_count()
    assert "tml-secret" not in text
    assert record["environment"]["TINKER_API_KEY"] == "***"
    assert record["environment"]["TINKER_BACKEND"] == "local"
    assert "MY" not in record["environment"]


def test_a_users_error_is_one_paragraph_and_exit_code_2(tmp_path: Path) -> None:
    done = run_job('raise TinsmithError("x must be 1, got 2")', tmp_path)
    assert done.returncode == 2
    assert done.stderr == "some_rule: x must be 1, got 2\n"
    assert "x must be 1" in (tmp_path / "logs/job.log").read_text()
    assert not (tmp_path / "out").exists()


def test_a_bug_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    done = run_job("1 / 0", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "unexpected ZeroDivisionError: division by zero (traceback in" in done.stderr
    assert "Traceback (most recent call last)" in (tmp_path / "logs/job.log").read_text()


def test_a_killed_job_cleans_up_and_records_nothing(tmp_path: Path) -> None:
    body = 'print("ready", flush=True); time.sleep(60)'
    program = JOB.replace("BODY", body)
    (tmp_path / "given.txt").write_text("given")
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    process.stdout.close()
    assert (tmp_path / "cleaned").exists()
    assert not (tmp_path / "out").exists()


def test_variables_that_may_hold_a_secret_are_masked() -> None:
    secret = {"HF_TOKEN": "a", "TINKER_API_KEY": "b", "WANDB_API_KEY": "e"}
    assert recorded_environment(secret | {"HF_HOME": "c", "PATH": "d"}) == {
        "HF_HOME": "c",
        "HF_TOKEN": "***",
        "TINKER_API_KEY": "***",
        "WANDB_API_KEY": "***",
    }


def test_a_trees_digest_sees_names_and_contents_but_not_snakemakes_mark(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_text("1")
    before = describe_file(tmp_path / "tree")
    (tmp_path / "tree/.snakemake_timestamp").touch()
    assert describe_file(tmp_path / "tree") == before
    (tmp_path / "tree/a").rename(tmp_path / "tree/b")
    assert describe_file(tmp_path / "tree")["sha256"] != before["sha256"]


def test_a_commit_is_dirty_by_what_differs_from_it_besides_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("measured/a.json", "code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "first")):
        subprocess.run(["git", *words], check=True)
    clean = git_commit()
    assert clean is not None
    assert not clean.endswith("-dirty")
    (tmp_path / "measured/a.json").write_text("2\n")
    assert git_commit() == f"{clean}-dirty"
    assert git_commit(besides="measured") == clean
    (tmp_path / "code.py").write_text("2\n")
    assert git_commit(besides="measured") == f"{clean}-dirty"
