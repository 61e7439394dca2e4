"""The venv over a system's CUDA torch, on machines whose driver and torch are made up."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.torch_report import found_gpu, found_memory
from tests.pipeline import machines
from tests.pipeline.small import CONFIG
from tests.pipeline.workflow import Said, Workflow, workflow_environment

SetUp = Callable[..., Said]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The system's Python, of this version, without torch."""
    return machines.make_python(tmp_path / "system")


@pytest.fixture
def set_up(tmp_path: Path, python: Path) -> SetUp:
    project = machines.lay_out(tmp_path)

    def run(*options: str) -> Said:
        script = str(project / "scripts/gh200_setup_local_tinker.sh")
        done = subprocess.run(
            [script, "--venv", str(project / "venv"), *options],
            env=environment(tmp_path, python),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Said(done.returncode, done.stdout)

    return run


def environment(folder: Path, python: Path) -> dict[str, str]:
    kept = workflow_environment()
    return kept | {
        "PATH": f"{folder / 'driver'}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": "",
        "TINSMITH_SYSTEM_PYTHON": str(python),
    }


def venv(folder: Path) -> Path:
    return folder / "project/venv"


def test_a_venv_over_a_cuda_torch_sees_it_and_a_second_call_changes_nothing_until_pip_replaced_it(
    tmp_path: Path, python: Path, set_up: SetUp
) -> None:
    system = machines.packages_of(python)
    machines.write_torch(system, "2.10.0a0+nv", "12.9")
    said = set_up()
    assert said.code == 0, said.text
    for line in ("570.86.15, for CUDA up to 12.8", "1 x NVIDIA GH200", "2.10.0a0+nv for CUDA 12.9"):
        assert line in said.text
    inside = venv(tmp_path) / "bin/python"
    assert json.loads((venv(tmp_path) / "torch.json").read_text())["torch"]["folder"] == str(
        system / "torch"
    )
    packages = machines.packages_of(inside)
    before = {path: path.stat().st_mtime_ns for path in packages.rglob("*.py")}
    assert (packages / "idna/__init__.py") in before

    again = set_up()
    assert again.code == 0, again.text
    assert before == {path: path.stat().st_mtime_ns for path in packages.rglob("*.py")}

    machines.write_torch(packages, "2.13.0+cpu", None)  # as `pip install vllm` would
    replaced = set_up()
    assert replaced.code != 0
    assert (
        f"pip replaced the system torch of {system / 'torch'} by torch 2.13.0+cpu" in replaced.text
    )
    assert not (venv(tmp_path) / "torch.json").exists()


@pytest.mark.parametrize(
    ("cuda", "fault", "reason"),
    [
        (None, "", "is built for the CPU only"),
        ("12.9", "no driver", "CUDA 12.9 does not initialise with torch 2.10.0"),
    ],
    ids=["cpu_only", "no_driver"],
)
def test_a_system_torch_without_cuda_is_refused_before_anything_is_made(
    tmp_path: Path, python: Path, set_up: SetUp, cuda: str | None, fault: str, reason: str
) -> None:
    machines.write_torch(machines.packages_of(python), "2.10.0", cuda, fault)
    said = set_up()
    assert said.code != 0
    assert reason in said.text
    assert "--torch-index" in said.text
    assert not venv(tmp_path).exists()


def test_an_older_python_needs_an_index_and_a_newer_python(
    tmp_path: Path, python: Path, set_up: SetUp
) -> None:
    machines.write_torch(machines.packages_of(python), "2.4.0", "12.4")
    machines.make_older(python)
    said = set_up()
    assert said.code != 0
    assert "is older than the 3.11 that the Tinker SDK needs: name a package index" in said.text
    said = set_up("--torch-index", "file:///nowhere", "--python", str(python))
    assert said.code != 0
    assert f"{python} is no Python of 3.11 or newer" in said.text
    assert not venv(tmp_path).exists()


def test_the_rule_makes_a_venv_of_a_newer_python_with_a_torch_of_the_users_index(
    tmp_path: Path, python: Path
) -> None:
    machines.make_older(python)
    machines.lay_out(tmp_path)
    folder = tmp_path / "workflow"
    folder.mkdir()
    workflow = Workflow(folder, CONFIG, stand_ins=False)
    (folder / "envs/engine.txt").write_text("idna==3.20\ntorch==2.13.0\n")
    told = environment(tmp_path, python) | {
        "TINSMITH_PYTHON": sys.executable,
        "TINSMITH_TORCH_INDEX": machines.make_index(tmp_path, "2.13.0+cu129", "12.9"),
    }
    said = workflow.snakemake("--cores", "1", "gh200_venv", **told)
    assert said.code == 0, said.text
    found = json.loads((folder / ".venvs/gh200/torch.json").read_text())["torch"]
    assert (found["version"], found["cuda"]) == ("2.13.0+cu129", "12.9")
    assert found["folder"].startswith(str(folder / ".venvs/gh200"))


def test_a_dry_run_prints_what_it_would_do_and_does_nothing(
    tmp_path: Path, python: Path, set_up: SetUp
) -> None:
    machines.write_torch(machines.packages_of(python), "2.10.0", "12.9")
    said = set_up("--dry-run")
    assert said.code == 0, said.text
    assert f"+ {python} -m venv --system-site-packages {venv(tmp_path)}" in said.text
    assert "pip --disable-pip-version-check install --no-deps" in said.text
    assert not venv(tmp_path).exists()


def test_a_gpu_whose_memory_is_a_numa_node_counts_it_once(tmp_path: Path) -> None:
    for node, cores, kib in ((0, "0-71", 480 << 20), (1, "", 96 << 20)):
        folder = tmp_path / f"node{node}"
        folder.mkdir()
        (folder / "cpulist").write_text(cores + "\n")
        (folder / "meminfo").write_text(f"Node {node} MemTotal:       {kib} kB\n")
    gpu = found_gpu(machines.DRIVER.replace("97871", str(96 << 10)))
    memory = found_memory(gpu, tmp_path)
    assert memory == {"cpu": 480 << 30, "gpu": 96 << 30, "unified": 576 << 30}
    assert gpu is not None
    assert found_memory(gpu | {"addressing_mode": "HMM"}, tmp_path)["unified"] == 0
