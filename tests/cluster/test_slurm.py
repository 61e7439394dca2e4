"""The DAG as jobs of a real SLURM: the whole of it, a stage alone, a sweep in arrays, a stage that
is preempted, one that runs into its time limit, a job that fails; and a server as a job."""

import json
import math
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinker
import yaml

from tests.clients import forward
from tests.cluster.jobs import CHAIN, CONFIG, HELD, RUNS, STAGES, STEPS
from tests.cluster.one_node import GPU_MODEL, NUM_GPUS, missing, one_node_cluster
from tests.cluster.started import PLUGIN, Started, call, output
from tests.pipeline.workflow import ROOT, Said, Workflow
from tinsmith.checkpoints import weights_sha256

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(not PLUGIN.is_dir(), reason="`make test` installs the plugin for SLURM"),
    pytest.mark.timeout(1800),
]
# With the wait for an array's first task that docs/slurm.md speaks of.
AS_ARRAYS = ["--slurm-array-jobs", "all", "--keep-incomplete", "--latency-wait", "600"]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_node_cluster(tmp_path_factory.mktemp("slurm")):
        yield


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of three stages: one of them called for alone, then everything."""

    folder: Path
    check: Said
    one: Said
    made_by_one: set[str]
    everything: Said


@dataclass(frozen=True, slots=True)
class Finished:
    """The swept stage, what it said, and the states that were seen of its jobs of SLURM."""

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
def chain(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Chain]]:
    """Runs beside everything else, in a partition whose jobs make way for none."""
    workflow = Workflow(tmp_path_factory.mktemp("chain"), CHAIN, stand_ins=False)
    profile = workflow.folder / "profiles/slurm/config.yaml"
    profile.write_text(profile.read_text().replace('slurm_partition: ""', "slurm_partition: calm"))
    with ThreadPoolExecutor(1) as runner:
        yield runner.submit(run_chain, workflow)


def run_chain(workflow: Workflow) -> Chain:
    check = call(workflow.folder, "scripts.check_slurm")
    one = Started(workflow, "results/seed=0/rejection/checkpoint.json").said()
    made = {file.parent.name for file in workflow.folder.glob("results/seed=0/*/checkpoint.json")}
    return Chain(workflow.folder, check, one, made, Started(workflow).said())


@pytest.fixture(scope="module")
def finished(
    failing: Started, chain: Future[Chain], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Both runs are preempted in their stage; then `a` stands still until its time is up."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "held.py").write_text(HELD)
    for name in ("slow-a", "slow-b"):
        (folder / name).touch()
    targets = [f"results/{run}/supervised/checkpoint.json" for run in RUNS]
    started = Started(Workflow(folder, CONFIG, stand_ins=False), *targets, *short_stages())
    states: set[str] = set()
    started.wait_for(lambda: all(steps(folder, run) >= 2 for run in RUNS))
    # It takes all GPUs, so that it runs once both have made way.
    urgent = ["sbatch", "--partition=urgent", f"--gpus={NUM_GPUS}", "--mem=100", "--time=1"]
    urgent += [f"--output={folder}/out"]
    subprocess.run([*urgent, f"--wrap=touch {folder}/urgent-is-done"], check=True)
    started.wait_for(lambda: (folder / "urgent-is-done").exists())
    (folder / "hold-a").touch()
    for name in ("slow-a", "slow-b"):
        (folder / name).unlink()
    started.wait_for(lambda: "TIMEOUT" in note_states(states))
    (folder / "hold-a").unlink()
    return Finished(folder, started.said(), states)


@pytest.mark.usefixtures("failing", "chain")
def test_a_server_that_is_a_job_serves_any_program_until_it_is_cancelled(
    qwen3_dir: Path, tmp_path: Path
) -> None:
    asked = [f"--model=qwen3={qwen3_dir}", f"--store={tmp_path / 'store'}", "--runtime=15"]
    asked += [f"--folder={tmp_path / 'server'}", "--gpus=1", f"--gpu-model={GPU_MODEL}"]
    said = call(ROOT, "scripts.serve_on_slurm", *asked, "--", "--device=cpu", "--threads=1")
    assert said.code == 0, said.text
    config, export, cancel = said.text.splitlines()[-3:]
    backend = yaml.safe_load(config)["backend"]
    assert backend["kind"] == "remote"
    key = output("sh", "-c", f'{export}\nprintf %s "$TINKER_API_KEY"')
    assert (tmp_path / "server/key").stat().st_mode & 0o077 == 0
    with tinker.ServiceClient(base_url=backend["url"], api_key=key) as service:
        client = service.create_lora_training_client("qwen3", rank=2).result()
        assert np.isfinite(forward(client, [5, 6, 7])).all()
    job = cancel.split()[1]
    assert f"gpu:{GPU_MODEL}:1" in output(
        "squeue", "--noheader", f"--jobs={job}", "--Format=tres-per-job"
    )
    output("sh", "-c", cancel)
    while output("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T") != (
        "CANCELLED"
    ):
        time.sleep(0.2)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{backend['url']}/healthz")


@pytest.mark.usefixtures("failing", "chain")
def test_a_server_that_cannot_be_started_says_why(qwen3_dir: Path, tmp_path: Path) -> None:
    asked = [f"--model=qwen3={qwen3_dir}", f"--folder={tmp_path}"]
    said = call(ROOT, "scripts.serve_on_slurm", *asked, "--partition=none-such")
    assert said.code == 2
    assert "SLURM refuses the job:" in said.text
    said = call(ROOT, "scripts.serve_on_slurm", *asked, "--", "--threads=0")
    assert said.code == 2
    assert re.search(r"job \d+ has ended, FAILED: .*--threads: must be a whole number", said.text)


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


def test_a_stage_called_for_alone_is_trained_with_what_it_needs(chain: Future[Chain]) -> None:
    result = chain.result()
    assert result.one.code == 0, result.one.text
    assert result.made_by_one == {"supervised", "rejection"}


def test_the_whole_default_chain_ends_well(chain: Future[Chain]) -> None:
    result = chain.result()
    assert result.everything.code == 0, result.everything.text
    assert (result.folder / "results/report.html").is_file()
    run = result.folder / "results/seed=0"
    assert (run / "export/merged").is_dir()
    for stage in STAGES:
        assert (run / stage / "checkpoint.json").is_file()
        assert len((run / stage / "metrics.jsonl").read_text().splitlines()) >= 2
    submitted = {folder.name for folder in (result.folder / "logs/slurm").iterdir()}
    rules = ("check_setup", "prepare_model", "prepare_data", "train_stage", "export_run")
    assert submitted >= {f"rule_{rule}" for rule in (*rules, "evaluate_stage", "write_report")}


def test_a_cluster_that_has_what_the_jobs_ask_for_passes_the_check(chain: Future[Chain]) -> None:
    check = chain.result().check
    assert check.code == 0, check.text
    assert "ok    train_stage, attempt 4: " in check.text
    assert check.text.splitlines()[-1] == "Nothing was submitted."


def test_every_job_has_the_one_gpu_that_slurm_gave_it(finished: Finished) -> None:
    records = sorted(finished.folder.glob("results/*/*/run_metadata.json"))
    devices = [json.loads(r.read_text())["environment"]["CUDA_VISIBLE_DEVICES"] for r in records]
    assert len(devices) == 2
    assert set(devices) <= {"0", "1"}


def test_a_failing_job_is_reported_with_its_log(failing: Started) -> None:
    said = failing.said()
    assert said.code != 0
    assert "Error in rule prepare_data" in said.text
    assert "logs/slurm/rule_prepare_data" in said.text
    assert "line 2 has no field 'answer'" in said.text
    assert not list(failing.folder.glob("data/*/train.jsonl"))


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
    states.update(output("squeue", "--states=all", "--noheader", "--format=%T").split())
    return states
