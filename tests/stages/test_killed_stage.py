"""The script of a stage, killed without warning, told to stop, and called again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import require_trackers
from tinsmith.backend.storage.store import Store
from tinsmith.checkpoints import Checkpoint, weights_sha256
from tinsmith.trackers import ENVIRONMENT

STEPS = 8
SUPERVISED = {"kind": "supervised", "steps": 12, "batch_size": 8, "learning_rate": 0.01}
GRPO = {
    "kind": "grpo",
    "steps": STEPS,
    "problems_per_step": 4,
    "samples_per_problem": 4,
    "learning_rate": 0.0005,
    "kl_penalty": 0.1,
}
# Snapshots are taken at other steps than working checkpoints, so that a kill loses one.
DEBATE = {
    "kind": "debate",
    "judge": {"kind": "mock"},
    "opponent": {"kind": "pool", "every": 2},
    "argue_prompt": "{opponent}",
}
COMMON = {"save_every": 3, "eval_problems": 4, "max_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with two possible answers, so that a short warm-up makes some of them right."""
    folder = tmp_path_factory.mktemp("killed")
    rows = [{"id": str(i), "question": f"{i}", "answer": str(1 + i % 2)} for i in range(40)]
    for name, part in (("train", rows[:32]), ("heldout", rows[32:])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    return folder


def command(
    folder: Path,
    model: Path,
    stage: dict,
    target: str,
    previous: Path | None,
    paradigm: dict | None = None,
) -> list:
    settings = {
        "run": "seed=0",
        "seed": 0,
        "model_name": "tiny",
        "stage": stage | COMMON,
        "task": {"kind": "arithmetic"},
        "paradigm": paradigm or {"kind": "single_turn"},
        "lora": {"rank": 4},
        "backend": {"store": str(folder / "store")},
    }
    out = folder / target
    paths = {
        "model": model,
        "train": folder / "train.jsonl",
        "heldout": folder / "heldout.jsonl",
        "work": folder / "work" / target,
        "checkpoint": out / "checkpoint.json",
        "info": out / "final_checkpoint_info.json",
        "saved": out / "checkpoints.jsonl",
        "metrics": out / "metrics.jsonl",
        "steps": out / "steps",
        "transcript": out / "transcript.html",
        "weights": out / "weights",
        "log": out / "train.log",
        "metadata": out / "run_metadata.json",
    }
    flags = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    before = ["--previous", str(previous)] if previous else ["--previous"]
    program = [sys.executable, "-m", "scripts.train", "--settings", json.dumps(settings)]
    return [*program, *flags, *before]


def kill_after(command: list[str], progress: Path, next_step: int) -> None:
    """Start a stage and kill it without warning once it is past its checkpoint `next_step`."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    step_after = progress.parent / "steps" / f"training_step_{next_step}.json"
    while process.poll() is None and not step_after.exists():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < next_step_of(progress) < STEPS


def next_step_of(progress: Path) -> int:
    """The step with which a stage would go on."""
    return json.loads(progress.read_text())["saved"][-1]["step"]


def stored(folder: Path) -> set[str]:
    """The checkpoints that the backend has."""
    store = Store(folder / "store")
    found = {one.path for one in store.checkpoints()}
    store.close()
    return found


def warn_after(command: list[str], steps: Path, step: int) -> None:
    """Start a stage and, after a step, send SIGTERM to it and its server, as SLURM does."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (steps / f"training_step_{step}.json").exists():
        time.sleep(0.005)
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        one.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def metrics(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows]


@dataclass(frozen=True, slots=True)
class Ended:
    """The folders of a stage that ran through and of one that was killed, called again, told to
    stop and called again; the working folder of the latter, the snapshots that it had taken when it
    was killed, the step after which it stopped and the one with which it would go on."""

    straight: Path
    killed: Path
    work: Path
    snapshots: dict[str, str]
    told_after: int
    next_step: int


@pytest.fixture(scope="module")
def ended(folder: Path, llama_dir: Path) -> Ended:
    """A debate against snapshots, with a penalty on leaving the warm-up that it starts from."""
    subprocess.run(command(folder, llama_dir, SUPERVISED, "warm", None), check=True)
    previous = folder / "warm" / "checkpoint.json"
    straight, killed = (
        command(folder, llama_dir, GRPO, name, previous, DEBATE) for name in ("straight", "killed")
    )
    subprocess.run(straight, check=True)
    if ENVIRONMENT.python.is_file():
        killed += ["--trackers", '{"trackers": [{"kind": "tensorboard"}]}']
    work = folder / "work" / "killed"
    kill_after(killed, work / "progress.json", 4)
    snapshots = json.loads((work / "progress.json").read_text())["snapshots"]
    warn_after(killed, work / "steps", 5)
    log = (folder / "killed" / "train.log").read_text()
    told_after = int(re.findall(r"told to stop by SIGTERM: saved after step (\d+)", log)[0])
    next_step = next_step_of(work / "progress.json")
    subprocess.run(killed, check=True)
    return Ended(folder / "straight", folder / "killed", work, snapshots, told_after, next_step)


def test_a_killed_stage_goes_on_and_ends_as_if_it_had_not_been_killed(ended: Ended) -> None:
    straight, killed = ended.straight, ended.killed
    assert "goes on at step" in (killed / "train.log").read_text()
    assert weights_sha256(killed / "weights") == weights_sha256(straight / "weights")
    assert metrics(killed / "metrics.jsonl") == metrics(straight / "metrics.jsonl")
    for kind in ("json", "html"):
        assert len(list((killed / "steps").glob(f"*.{kind}"))) == STEPS
    assert not ended.work.exists()

    checkpoint = Checkpoint.read(killed / "checkpoint.json")
    assert checkpoint.weights_sha256 == weights_sha256(killed / "weights")
    assert (checkpoint.stage, checkpoint.step, checkpoint.lora_rank) == ("grpo", STEPS, 4)


def test_a_stage_that_is_told_to_stop_ends_its_step_and_saves(ended: Ended) -> None:
    assert ended.told_after in (5, 6)
    assert ended.next_step == ended.told_after + 1


def test_a_stage_that_was_killed_and_stopped_shows_every_step_once(ended: Ended) -> None:
    require_trackers()
    reader = Path(__file__).parents[1] / "read_trackers.py"
    said = subprocess.check_output([ENVIRONMENT.python, reader, ended.killed])
    rows = metrics(ended.killed / "metrics.jsonl")
    shown = json.loads(said)["tensorboard"]
    assert [step for step, _ in shown["loss"]] == list(range(STEPS))
    assert [loss for _, loss in shown["loss"]] == pytest.approx([row["loss"] for row in rows])
    names = {name for row in rows for name in row} - {"step"}
    assert set(shown) == names | {"tokens_per_s"}


def test_a_stage_that_is_to_start_again_deletes_what_it_had_saved(
    ended: Ended, folder: Path, llama_dir: Path
) -> None:
    """It is the warm-up of the others, and so ends with its weights."""
    words = command(folder, llama_dir, SUPERVISED, "again", None)
    progress = folder / "work" / "again" / "progress.json"
    kill_after(words, progress, 3)
    (*_, last) = json.loads(progress.read_text())["saved"]
    assert {last["state"], last["sampler"]} <= stored(folder)

    refused = subprocess.run([*words, "--checkpoints", '{"existing": "raise"}'], check=False)
    assert refused.returncode == 2
    assert "checkpoints.existing is 'raise'" in (folder / "again" / "train.log").read_text()

    subprocess.run([*words, "--checkpoints", '{"existing": "delete"}'], check=True)
    assert "starting the stage" in (folder / "again" / "train.log").read_text()
    assert weights_sha256(folder / "again/weights") == weights_sha256(folder / "warm/weights")
    assert not {last["state"], last["sampler"]} & stored(folder)


def test_stages_side_by_side_never_share_a_gpu(
    folder: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fake GPUs; the model itself runs on the CPU, which `auto` is where CUDA shows none."""
    fake = [f"fake-{os.getpid()}-{index}" for index in range(2)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(fake))
    targets = ("beside", "besides")
    commands = [command(folder, llama_dir, SUPERVISED, target, None) for target in targets]
    for process in [subprocess.Popen([*words, "--gpus", "1"]) for words in commands]:
        assert process.wait() == 0
    files = [folder / target / "run_metadata.json" for target in targets]
    records = [json.loads(file.read_text()) for file in files]
    assert max(r["started"] for r in records) < min(r["ended"] for r in records)
    assert {r["environment"]["CUDA_VISIBLE_DEVICES"] for r in records} == set(fake)


def test_a_killed_debate_goes_on_against_the_same_opponents(ended: Ended) -> None:
    assert set(ended.snapshots) >= {"0", "2"}
    assert all(path.startswith("tinker://") for path in ended.snapshots.values())
    said = [
        [json.loads(file.read_text())["samples"] for file in sorted(out.glob("steps/*.json"))]
        for out in (ended.straight, ended.killed)
    ]
    assert said[0] == said[1]


def test_the_kl_penalty_measures_the_distance_to_the_checkpoint_of_the_stage_before(
    ended: Ended,
) -> None:
    """The warm-up is far from the base, so that the distance to that would not begin at 0."""
    distances = [row["kl_reference_nats"] for row in metrics(ended.killed / "metrics.jsonl")]
    assert distances[0] == pytest.approx(0.0, abs=1e-5)
    assert max(map(abs, distances)) > 1e-4
