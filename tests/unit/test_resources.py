"""What the jobs of each rule ask of Snakemake and SLURM."""

from types import SimpleNamespace
from typing import Any

import pytest

from tinsmith.config import check
from tinsmith.errors import TinsmithError
from tinsmith.plan import Plan
from tinsmith.runs import expand

TRAINING = SimpleNamespace(run="seed=0", stage="supervised")


def plan(**changes: Any) -> Plan:
    values = {
        "model": {"kind": "tiny"},
        "data": {"kind": "arithmetic"},
        "task": {"kind": "arithmetic"},
        "stages": [{"kind": "supervised", "steps": 2}],
    }
    return Plan(expand(check(values | changes)), {})


def test_an_attempt_asks_for_more_memory_and_time_within_bounds() -> None:
    asked = {"train_stage": {"mem_mb": 8000, "runtime": 600}, "max_mem_mb": 20000}
    request = plan(resources=asked).request("train_stage")
    attempts = (1, 2, 3, 9)
    assert [request.mem_mb(TRAINING, k) for k in attempts] == [8000, 16000, 20000, 20000]
    assert [request.runtime(TRAINING, k) for k in attempts] == [600, 1200, 1440, 1440]
    unbounded = plan(resources={"train_stage": {"mem_mb": 8000}}).request("train_stage")
    assert unbounded.mem_mb(TRAINING, 9) == 32000


def test_rules_that_run_the_model_ask_for_the_backends_cores_and_gpus() -> None:
    planned = plan(backend={"threads": 6, "gpus": 2}, resources={"gpu_model": "gh200"})
    request = planned.request("train_stage")
    assert request.threads(TRAINING) == 6
    assert (request.gpus(TRAINING), request.gpu_model(TRAINING)) == (2, "gh200")
    data = planned.request("prepare_data")
    wildcards = SimpleNamespace(data=planned.runs["seed=0"].data_key)
    assert (data.threads(wildcards), data.gpus(wildcards), data.gpu_model(wildcards)) == (1, 0, "")
    setup = planned.request("check_setup")
    assert (setup.threads(SimpleNamespace()), setup.gpus(SimpleNamespace())) == (1, 2)


def test_a_rules_own_resources_win() -> None:
    own = {"cores": 3, "gpus": 0, "gpu_model": "a100"}
    planned = plan(backend={"threads": 6, "gpus": 1}, resources={"evaluate_stage": own})
    request = planned.request("evaluate_stage")
    assert (request.threads(TRAINING), request.gpus(TRAINING)) == (3, 0)
    assert request.gpu_model(TRAINING) == ""


def test_a_service_elsewhere_has_gpus_of_its_own() -> None:
    remote = {"kind": "remote", "url": "http://127.0.0.1:8000", "gpus": 1}
    assert plan(backend=remote).request("train_stage").gpus(TRAINING) == 0


def test_a_job_of_all_runs_asks_for_the_most_that_any_does() -> None:
    planned = plan(sweep={"backend.gpus": [0, 2]})
    assert planned.request("check_setup").gpus(SimpleNamespace()) == 2
    one = SimpleNamespace(run="seed=0+backend.gpus=0", stage="supervised")
    assert planned.request("train_stage").gpus(one) == 0


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"train": {}}, "resources.train is not a known key; did you mean 'train_stage'?"),
        ({"train_stage": {"memory": 1}}, "train_stage.memory is not a known key"),
        ({"gpu_model": "NVIDIA H100"}, "gpu_model must be the model as SLURM calls it"),
        ({"train_stage": {"runtime": 1500}}, "train_stage.runtime must be at most resources.max"),
    ],
)
def test_wrong_resources_are_refused(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(TinsmithError, match=said):
        plan(resources=resources)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({"kind": "remote"}, "backend.url is required with backend.kind 'remote'"),
        ({"url": "http://node:1"}, "backend.url belongs to backend.kind 'remote'"),
        ({"kind": "remote", "url": "node:8000"}, "backend.url must be a server's address"),
        ({"device": "cuda"}, "gpus must be at least backend.num_gpus = 1 with backend.device"),
        ({"gpus": 1, "num_gpus": 2}, "gpus must be at least backend.num_gpus = 2 with"),
        ({"shard_base_model": True}, "num_gpus must be at least 2 with backend.shard_base_model"),
    ],
)
def test_a_backend_that_is_not_whole_is_refused(backend: dict[str, Any], said: str) -> None:
    with pytest.raises(TinsmithError, match=said):
        plan(backend=backend)
