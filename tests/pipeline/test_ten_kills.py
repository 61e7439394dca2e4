"""A pipeline that is killed again and again ends as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.small import CONFIG
from tests.pipeline.workflow import Workflow, processes_in, wait_for, workflow_environment
from tinsmith.backend.storage.store import Store
from tinsmith.checkpoints import weights_sha256

# Twelve starts of Snakemake, of a stage and of its server, which a busy machine takes long for.
pytestmark = pytest.mark.timeout(1800)
# Which stage may be killed each time, and at which of the ten Snakemake is too.
KILLED = [*[("supervised", "grpo")] * 5, *[("grpo",)] * 5]
WHOLE_TREE = (3, 7)
MOST_STEPS, MOST_DELAY_S = 2, 0.15
# More than ten attempts get done, however fast the machine is.
STEPS = {"supervised": 4, "grpo": 100}
RUN = Path("results/seed=0")
TARGET = str(RUN / "grpo/checkpoint.json")


def config(model: Path) -> dict[str, Any]:
    """Saved every other step, so that some are lost with each kill."""
    supervised, grpo = CONFIG["stages"]
    common = {"save_every": 2, "eval_every": 9}
    stages = [
        supervised | common | {"steps": STEPS["supervised"]},
        grpo | common | {"steps": STEPS["grpo"], "no_signal": "skip"},
    ]
    return CONFIG | {"model": {"kind": "path", "path": str(model)}, "stages": stages}


@contextmanager
def started(workflow: Workflow) -> Iterator[subprocess.Popen[bytes]]:
    """A Snakemake call under way, in a process group of its own as a shell would give it."""
    with (workflow.folder / "said.log").open("a") as said:
        snakemake = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "1", TARGET],
            cwd=workflow.folder,
            env=workflow_environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Where the tests run in the background of a script, SIGINT is ignored, by children too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield snakemake
        finally:
            snakemake.kill()
            snakemake.wait()


def tree(snakemake: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A call's own process and all that it has started; none once it has ended."""
    try:
        process = psutil.Process(snakemake.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def training(
    snakemake: subprocess.Popen[bytes], stages: Collection[str] = tuple(STEPS)
) -> list[psutil.Process]:
    """The program of one of the stages and its server, if it is being trained."""
    found = []
    for process in tree(snakemake):
        try:
            words = process.cmdline()
            names = [f'"name":"{stage}"' for stage in stages]
            if "scripts.train" in words and any(name in words[4] for name in names):
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    return found


def await_moment(
    workflow: Workflow,
    snakemake: subprocess.Popen[bytes],
    stages: Collection[str],
    num_steps: int,
    delay_s: float,
) -> None:
    """Until one of the stages has written that many steps since it was called, or is done; and then
    some."""
    log = workflow.folder / "said.log"
    wait_for(lambda: training(snakemake, stages), log)
    called = time.time()

    def written() -> int:
        files = [
            *workflow.folder.glob("work/*/*/steps/*"),
            *workflow.folder.glob(f"{RUN}/*/*.json"),
        ]
        times = []
        for file in files:
            with suppress(FileNotFoundError):  # a stage that is done removes its working folder
                times.append(file.stat().st_mtime)
        return sum(time_s > called for time_s in times)

    wait_for(lambda: written() >= num_steps, log)
    time.sleep(delay_s)


def is_held(snakemake: subprocess.Popen[bytes]) -> bool:
    """Hold the program of a stage where it is, so that it does not end before it is killed."""
    for program in training(snakemake)[:1]:
        with suppress(psutil.NoSuchProcess):
            program.suspend()
            return True
    return False


def kill(
    workflow: Workflow, chance: random.Random, stages: Collection[str], *, whole_tree: bool
) -> None:
    """Call Snakemake, and kill the stage that it trains at a random moment, without warning."""
    with started(workflow) as snakemake:
        num_steps, delay_s = chance.randint(0, MOST_STEPS), chance.uniform(0, MOST_DELAY_S)
        await_moment(workflow, snakemake, stages, num_steps, delay_s)
        wait_for(lambda: is_held(snakemake), workflow.folder / "said.log")
        victims = tree(snakemake) if whole_tree else training(snakemake)
        assert victims, "the stage ended before it could be killed"
        chance.shuffle(victims)
        for victim in victims:
            with suppress(psutil.NoSuchProcess):  # a server ends by itself without its stage
                victim.kill()
        assert snakemake.wait(timeout=120) != 0
    wait_for(lambda: processes_in(workflow.folder) == [], workflow.folder / "said.log")
    if whole_tree:
        assert workflow.snakemake("--unlock").code == 0


def press_ctrl_c(workflow: Workflow) -> None:
    """Which sends SIGINT to the whole group."""
    with started(workflow) as snakemake:
        await_moment(workflow, snakemake, STEPS, 1, 0)
        assert training(snakemake)
        os.killpg(snakemake.pid, signal.SIGINT)
        assert snakemake.wait(timeout=120) != 0
    wait_for(lambda: processes_in(workflow.folder) == [], workflow.folder / "said.log")


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows]


def test_a_run_that_is_killed_ten_times_ends_as_one_that_was_left_alone(
    finished: Workflow, tmp_path: Path
) -> None:
    values = config(next((finished.folder / "models").glob("tiny-*/")))
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
    alone, killed = (
        Workflow(tmp_path / name, values, stand_ins=False) for name in ("alone", "killed")
    )
    said = alone.snakemake("--cores", "1", TARGET)
    assert said.code == 0, said.text

    chance = random.Random(7)
    for number, stages in enumerate(KILLED):
        kill(killed, chance, stages, whole_tree=number in WHOLE_TREE)
        assert not (killed.folder / TARGET).exists()
    press_ctrl_c(killed)
    said = killed.snakemake("--cores", "1", TARGET)
    assert said.code == 0, said.text
    assert "stage grpo goes on at step" in said.text

    for stage, num_steps in STEPS.items():
        folders = [workflow.folder / RUN / stage for workflow in (alone, killed)]
        first, second = (weights_sha256(folder / "weights") for folder in folders)
        assert first == second
        assert metrics(folders[0]) == metrics(folders[1])
        assert len(metrics(folders[0])) == num_steps
    assert stored(killed) == recorded(killed)
    assert not list((killed.folder / "work").glob("*/*"))


def stored(workflow: Workflow) -> set[str]:
    """What the backend keeps to train on from and to sample."""
    store = Store(workflow.folder / "store")
    found = store.checkpoints()
    store.close()
    return {one.path for one in found if one.kind != "external_weights"}


def recorded(workflow: Workflow) -> set[str]:
    """What the stages say that they kept."""
    files = [workflow.folder / RUN / stage / "checkpoints.jsonl" for stage in STEPS]
    rows = [json.loads(line) for file in files for line in file.open()]
    return {row[name] for row in rows if row["is_kept"] for name in ("state", "sampler")}
