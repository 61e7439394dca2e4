"""Recipes as stages of the pipeline: the ready configs, on a tiny model and made-up data."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.cookbook.ready import MODEL, RUN, SUMS, make_workflow, offline, read, rows, small
from tests.pipeline.workflow import ROOT, Said, Workflow, workflow_environment
from tinsmith.serving import Endpoint

INSPECT = ROOT / ".venvs" / "inspect" / "stamp"
LOGS = "rlhf-qwen3_5_9b_base"  # where the recipe puts those of its three parts


def kill_when(path: Path, holds: str, job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Kill a program without warning once the file holds the text; returns what it started."""
    deadline = time.monotonic() + 300
    while not (path.is_file() and holds in path.read_text()):
        assert job.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.wait()
    return children


@pytest.fixture(scope="module")
def rlhf(hub: Path, endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """configs/rlhf.yaml, run to the end of its last stage; the first was killed on its way."""
    folder = tmp_path_factory.mktemp("rlhf")
    config = small("rlhf", hub, endpoint)
    config["stages"][0]["arguments"]["max_steps"] = 6
    workflow = make_workflow(folder, config, hub)
    outside = offline(endpoint, hub)
    said = workflow.plan(f"{RUN}/sft/checkpoint.json", **outside)
    [line] = [line for line in said.text.splitlines() if "scripts.train_cookbook" in line]
    command = line[line.index("python -m") :]
    environment = workflow_environment() | outside
    job = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=environment)
    [work] = [Path(word) for word in command.split() if word.startswith("work/")]
    saved = folder / work / "runs" / LOGS / "sft/checkpoints.jsonl"
    children = kill_when(saved, "000002", job)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "a recipe ends with the job that started it"
    said = workflow.snakemake("--cores", "1", f"{RUN}/rl/checkpoint.json", **outside)
    assert said.code == 0, said.text
    return workflow


def test_a_recipe_that_was_killed_goes_on_from_its_checkpoint(rlhf: Workflow) -> None:
    said = (rlhf.folder / "logs/seed=0/sft/train.recipe.log").read_text()
    assert "Resumed training from tinker://" in said
    steps = [row["step"] for row in rows(rlhf.folder / RUN / "sft/metrics.jsonl")]
    assert steps == list(range(6)), "every step once, whoever took it"


def test_every_stage_of_rlhf_leaves_a_checkpoint_that_loads(
    rlhf: Workflow, endpoint: Endpoint
) -> None:
    import tinker

    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        for name, steps in (("sft", 6), ("rm", 2), ("rl", 2)):
            folder = rlhf.folder / RUN / name
            checkpoint = read(folder / "checkpoint.json")
            assert (checkpoint["stage"], checkpoint["step"]) == (name, steps)
            assert (checkpoint["base_model"], checkpoint["lora_rank"]) == (MODEL, 32)
            paths = checkpoint["checkpoints"]
            assert f"tinker://{checkpoint['model_id']}/" in paths["state"]
            service.create_sampling_client(model_path=paths["sampler"]).result()
            info = read(folder / "final_checkpoint_info.json")
            assert info["checkpoints"]["final_state"] == paths["state"]
            assert [row["state"] for row in rows(folder / "checkpoints.jsonl")] == [paths["state"]]
            assert (folder / "weights/adapter_model.safetensors").is_file()
            assert read(folder / "run_metadata.json")["rule"] == "train_cookbook"


def test_the_last_stage_of_rlhf_starts_from_the_first_and_asks_the_second(rlhf: Workflow) -> None:
    said = (rlhf.folder / "logs/seed=0/rl/train.recipe.log").read_text()
    before = {n: read(rlhf.folder / RUN / n / "checkpoint.json") for n in ("sft", "rm")}
    assert f"Loaded weights from {before['sft']['checkpoints']['state']}" in said
    config = (rlhf.folder / RUN / "rl/recipe" / LOGS / "rl/config.json").read_text()
    assert before["rm"]["checkpoints"]["sampler"] in config


@pytest.fixture(scope="module")
def chat(hub: Path, endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """configs/chat.yaml with a second stage from the first, run to its report."""
    if not INSPECT.exists():
        pytest.skip(f"{INSPECT} is missing; make inspect installs Inspect AI")
    config = small("chat", hub, endpoint)
    [first] = config["stages"]
    second = {
        "kind": "cookbook",
        "name": "distilled",
        "recipe": "prompt_distillation.train",
        "arguments": {"file_path": "conversations.jsonl", "batch_size": 8, "max_steps": 2}
        | {"learning_rate": 0.03},  # so much that it answers otherwise after two steps
    }
    config |= {"stages": [first, second], "task": {"kind": "math"}, "lora": {"rank": 4}}
    workflow = make_workflow(tmp_path_factory.mktemp("chat"), config, hub)
    said = workflow.snakemake("--cores", "1", **offline(endpoint, hub))
    assert said.code == 0, said.text
    return workflow


def test_a_recipe_starts_from_the_stage_before_and_its_rank_is_the_configs(chat: Workflow) -> None:
    first, second = (read(chat.folder / RUN / n / "checkpoint.json") for n in ("chat", "distilled"))
    assert first["lora_rank"] == second["lora_rank"] == 4
    said = (chat.folder / "logs/seed=0/distilled/train.recipe.log").read_text()
    assert f"Loaded weights from {first['checkpoints']['state']}" in said
    metrics = rows(chat.folder / RUN / "distilled/metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1]


def test_the_report_and_the_card_show_a_recipe_like_any_stage(chat: Workflow) -> None:
    page = (chat.folder / "results/report.html").read_text()
    assert "Loss, nats a token" in page
    assert 'aria-label="Curves of stage distilled"' in page
    card = (chat.folder / RUN / "export/adapter/README.md").read_text()
    made = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert [stage["recipe"] for stage in made["stages"]] == [
        "chat_sl.train",
        "prompt_distillation.train",
    ]
    assert made["data"]["path"] == "sums.jsonl"


def test_inspect_asks_the_base_and_every_stage_and_the_report_says_what_it_found(
    chat: Workflow,
) -> None:
    page = (chat.folder / "results/report.html").read_text()
    assert "nouns, match" in page
    answers = []
    for stage in ("base", "chat", "distilled"):
        folder = chat.folder / RUN / stage / "inspect/nouns"
        found = read(folder / "inspect.json")["scores"]["match"]
        samples = read(folder / "log.json")["samples"]
        right = [sample["scores"]["match"]["value"] == "C" for sample in samples]
        assert len(right) == found["num_samples"] == SUMS["held_out"]
        assert found["mean"] == pytest.approx(sum(right) / len(right))
        assert found["low"] <= found["mean"] <= found["high"]
        of_stage = chat.folder / RUN / stage / "checkpoint.json"
        asked = MODEL if stage == "base" else read(of_stage)["checkpoints"]["sampler"]
        assert {sample["output"]["model"] for sample in samples} == {asked}
        answers.append([sample["output"]["completion"] for sample in samples])
    assert answers[0] != answers[2], "each checkpoint is asked, not the base three times"


def test_a_changed_file_of_an_argument_trains_again(
    chat: Workflow, endpoint: Endpoint, hub: Path
) -> None:
    assert "Nothing to be done" in chat.plan(**offline(endpoint, hub)).text
    chats = chat.folder / "conversations.jsonl"
    before = chats.stat()
    chats.write_text(chats.read_text() + chats.read_text().splitlines()[0] + "\n")
    try:
        jobs = chat.plan(**offline(endpoint, hub)).jobs
    finally:
        os.utime(chats, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {"train_cookbook chat", "train_cookbook distilled"} <= jobs


COOKBOOK = {"kind": "cookbook", "recipe": "chat_sl.train"}


@pytest.mark.parametrize(
    ("stages", "complaint"),
    [
        ([COOKBOOK | {"recipe": "chat_sl.trian"}], "did you mean 'chat_sl.train'?"),
        ([COOKBOOK | {"arguments": {"batchsize": 8}}], "takes no argument 'batchsize'; did you"),
        (
            [COOKBOOK, COOKBOOK | {"name": "x", "recipe": "preference.shorter.train"}],
            "stages[1]: recipe preference.shorter.train cannot start from the stage before",
        ),
        ([COOKBOOK | {"recipe": "preference.dpo.train"}], "lora.rank must be 32 with it, got 8"),
    ],
)
def test_what_a_recipe_cannot_take_stops_before_any_job(
    stages: list[dict[str, Any]], complaint: str, hub: Path, tmp_path: Path
) -> None:
    config = {
        "model": {"kind": "path", "path": str(hub / MODEL), "name": MODEL},
        "data": {"kind": "arithmetic"},
        "task": {"kind": "arithmetic"},
        "lora": {"rank": 8},
        "stages": stages,
    }
    said: Said = make_workflow(tmp_path, config, hub).plan()
    assert said.code != 0
    assert complaint in said.text
    assert "Traceback" not in said.text
