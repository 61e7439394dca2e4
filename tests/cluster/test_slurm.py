"""The DAG as jobs of a real SLURM: a sweep in arrays, a stage that is preempted, one that runs into
its time limit, and a job that fails."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.one_node import GPU_MODEL, missing, one_node_cluster
from tests.pipeline.workflow import ROOT, Said, Workflow, workflow_environment
from tinsmith.checkpoints import weights_sha256

PLUGIN = ROOT / ".venvs" / "slurm"
pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(not PLUGIN.is_dir(), reason="`make test` installs the plugin for SLURM"),
    pytest.mark.timeout(1800),
]
STEPS = 24
# The user's own code stands still in the midst of a stage, as long as a file is there.
HELD = '''
import time
from pathlib import Path

from tinsmith.types import Reward


class Held:
    """The number alone is right; run `name` is slow or stands still while files say so."""

    def __init__(self, chat, *, name="none"):
        self.chat, self.name = chat, name

    def question(self, problem):
        return problem.question

    def prompt(self, problem):
        return self.chat.prompt(problem.question)

    def reference(self, problem):
        steps = Path("work").glob(f"*name-{self.name}/supervised-*/steps/*")
        if Path(f"slow-{self.name}").exists() and any(steps):
            time.sleep(0.1)
        while Path(f"hold-{self.name}").exists():
            time.sleep(0.1)
        return self.chat.reply(problem.answer)

    def reward(self, problem, completion):
        is_right = completion.text == problem.answer
        return Reward(float(is_right), {"right": float(is_right)}, is_right)
'''
SMALL = {"eval_problems": 4, "eval_every": 100, "max_tokens": 8}
CONFIG: dict[str, Any] = {
    "model": {"kind": "tiny", "hidden_size": 64, "pretrain_steps": 120},
    "backend": {"device": "cpu", "gpus": 1},
    "data": {"kind": "arithmetic", "digits": 1, "num_problems": 100, "held_out": 30},
    "task": {"kind": "held:Held"},
    "lora": {"rank": 4},
    "stages": [
        {"kind": "supervised", "steps": STEPS, "batch_size": 8, "save_every": 5} | SMALL,
        {"kind": "grpo", "steps": 2, "problems_per_step": 8, "samples_per_problem": 4} | SMALL,
    ],
    "evaluation": {
        "num_problems": 10,
        "samples_per_problem": 2,
        "max_tokens": 8,
        "pass_at_k": [1, 2],
    },
    "sweep": {"task.options": [{"name": "a"}, {"name": "b"}]},
    "resources": {"gpu_model": GPU_MODEL},
}
RUNS = ("seed=0+task.options=name-a", "seed=0+task.options=name-b")
# Of the profile, only what suits clusters that are slow to ask and stages that take hours.
ARGUMENTS = ["--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1"]
# With the wait for an array's first task that docs/slurm.md speaks of.
AS_ARRAYS = ["--slurm-array-jobs", "all", "--keep-incomplete", "--latency-wait", "600"]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_node_cluster(tmp_path_factory.mktemp("slurm")):
        yield


class Started:
    """A Snakemake call under way."""

    def __init__(self, workflow: Workflow, *arguments: str) -> None:
        self.folder = workflow.folder
        self._output = (workflow.folder / "said.log").open("w+")
        environment = workflow_environment()
        paths = [str(PLUGIN), environment.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *ARGUMENTS, *arguments],
            cwd=workflow.folder,
            env=environment | {"PYTHONPATH": ":".join(filter(None, paths))},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait_for(self, is_so: Callable[[], object]) -> None:
        while not is_so():
            assert self._process.poll() is None, self.said().text
            time.sleep(0.1)

    def said(self) -> Said:
        code = self._process.wait()
        self._output.seek(0)
        return Said(code, self._output.read())


@dataclass(frozen=True, slots=True)
class Finished:
    """The swept workflow, what it said, and the states that were seen of its jobs of SLURM."""

    folder: Path
    said: Said
    states: set[str]


@pytest.fixture(scope="module")
def failing(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Started:
    """A workflow whose data are bad, running beside the swept one."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "bad.jsonl").write_text('{"question": "1+1", "answer": 2}\n{"question": "1+2"}\n')
    values = CONFIG | {
        "data": {"kind": "file", "path": "bad.jsonl", "held_out": 30},
        "task": {"kind": "arithmetic"},
        "sweep": {},
    }
    workflow = Workflow(folder, values, stand_ins=False)
    return Started(workflow, "--retries", "0", "data/" + data_key(workflow) + "/train.jsonl")


@pytest.fixture(scope="module")
def finished(failing: Started, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Both runs are preempted in their first stage; then `a` stands still until its time is up."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "held.py").write_text(HELD)
    for name in ("slow-a", "slow-b"):
        (folder / name).touch()
    started = Started(Workflow(folder, CONFIG, stand_ins=False), *short_stages())
    states: set[str] = set()
    started.wait_for(lambda: all(steps(folder, run) >= 2 for run in RUNS))
    # It takes the whole node, so that it runs once both have made way.
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--time=1", f"--output={folder}/out"]
    subprocess.run([*urgent, f"--wrap=touch {folder}/urgent-is-done"], check=True)
    started.wait_for(lambda: (folder / "urgent-is-done").exists())
    (folder / "hold-a").touch()
    for name in ("slow-a", "slow-b"):
        (folder / name).unlink()
    started.wait_for(lambda: "TIMEOUT" in note_states(states))
    (folder / "hold-a").unlink()
    return Finished(folder, started.said(), states)


def test_the_whole_pipeline_of_a_sweep_ends_well(finished: Finished) -> None:
    assert finished.said.code == 0, finished.said.text
    assert "a" in (finished.folder / "results/report.html").read_text()
    for run in RUNS:
        assert (finished.folder / "results" / run / "export/merged").is_dir()


def test_a_sweep_is_an_array(finished: Finished) -> None:
    logs = {file.name for file in (finished.folder / "logs/slurm/rule_train_stage").iterdir()}
    arrays = {name.partition("_")[0] for name in logs if name.endswith(("_1.log", "_2.log"))}
    assert arrays
    for array in arrays:
        assert {f"{array}_1.log", f"{array}_2.log"} <= logs


def test_stages_that_were_preempted_or_out_of_time_have_the_weights_of_one_left_alone(
    finished: Finished, tmp_path: Path
) -> None:
    """Whether a job that makes way has the time to save first is the machine's load's to say; that
    it saves and goes on from there, tests/stages/test_killed_stage.py holds."""
    (tmp_path / "held.py").write_text(HELD)
    (model,) = (path for path in (finished.folder / "models").iterdir() if path.is_dir())
    alone = CONFIG | {
        "model": {"kind": "path", "path": str(model)},
        "backend": {"device": "cpu"},
        "sweep": {},
    }
    workflow = Workflow(tmp_path, alone, stand_ins=False)
    said = workflow.snakemake("--cores", "1", "results/seed=0/supervised/checkpoint.json")
    assert said.code == 0, said.text
    expected = weights_sha256(tmp_path / "results/seed=0/supervised/weights")
    for run in RUNS:
        folder = finished.folder / "results" / run / "supervised"
        assert weights_sha256(folder / "weights") == expected
        lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
        assert lines == list(range(STEPS))


def test_every_job_has_the_one_gpu_that_slurm_gave_it(finished: Finished) -> None:
    records = sorted(finished.folder.glob("results/*/*/run_metadata.json"))
    devices = [json.loads(r.read_text())["environment"]["CUDA_VISIBLE_DEVICES"] for r in records]
    assert len(devices) == 2 * 3
    assert set(devices) <= {"0", "1"}


def test_logs_of_successful_jobs_are_kept(finished: Finished) -> None:
    logs = finished.folder / "logs/slurm"
    assert {path.name for path in logs.iterdir()} >= {"rule_check_setup", "rule_write_report"}


def test_a_failing_job_is_reported_with_its_log(failing: Started) -> None:
    said = failing.said()
    assert said.code != 0
    assert "Error in rule prepare_data" in said.text
    assert "logs/slurm/rule_prepare_data" in said.text
    assert "line 2 has no field 'answer'" in said.text
    assert not list(failing.folder.glob("data/*/train.jsonl"))


def test_a_single_stage_is_a_target_of_slurm(finished: Finished) -> None:
    """Of the finished workflow nothing is left to do, so that no job is submitted."""
    workflow = Workflow.__new__(Workflow)
    workflow.folder = finished.folder
    said = Started(workflow, f"results/{RUNS[1]}/supervised/checkpoint.json").said()
    assert said.code == 0, said.text
    assert "Nothing to be done" in said.text


def short_stages() -> list[str]:
    """A time limit of a minute, or more on a busy machine, of which a warning of five minutes would
    leave nothing; and attempts enough for one that is busier still."""
    started_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tinker, torch"], check=True)
    minutes = math.ceil((time.monotonic() - started_s) / 10)
    resources = ["train_stage:slurm_extra='--nice=0'", f"train_stage:runtime={minutes}"]
    return ["--retries", "30", "--set-resources", *resources, *AS_ARRAYS]


def data_key(workflow: Workflow) -> str:
    said = workflow.plan("results/seed=0/supervised/checkpoint.json").text
    return said.split("data/")[1].split("/")[0]


def steps(folder: Path, run: str) -> int:
    return len(list((folder / "work" / run).glob("supervised-*/steps/*.json")))


def note_states(states: set[str]) -> set[str]:
    command = ["squeue", "--states=all", "--noheader", "--format=%T"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    states.update(listed.split())
    return states
