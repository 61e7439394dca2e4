"""The real thing, small: every rule with its real program, the real SDK and the real server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.pipeline.workflow import Workflow, processes_in, workflow_environment
from tinsmith.metadata import describe_file

RUN = Path("results/seed=0")
UNREACHABLE_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none", "NO_PROXY": "*"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = sorted([*folder.rglob("run_metadata.json"), *folder.rglob("*.run_metadata.json")])
    return {str(path.relative_to(folder)): read(path) for path in found}


def test_every_stage_leaves_what_it_promises(finished: Workflow) -> None:
    for stage in ("supervised", "grpo"):
        folder = finished.folder / RUN / stage
        checkpoint = read(folder / "checkpoint.json")
        assert (checkpoint["stage"], checkpoint["seed"], checkpoint["lora_rank"]) == (stage, 0, 4)
        assert checkpoint["checkpoints"]["state"].startswith("tinker://")
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
        assert steps == [0, 1]
        assert (folder / "steps/training_step_1.json").is_file()
        assert (folder / "weights/adapter_model.safetensors").is_file()
        assert "<html" in (folder / "transcript.html").read_text()


def test_the_base_and_every_stage_are_evaluated(finished: Workflow) -> None:
    for stage in ("base", "supervised", "grpo"):
        evaluation = read(finished.folder / RUN / stage / "evaluation/evaluation.json")
        assert evaluation["num_problems"] == 10
        assert evaluation["accuracy_low"] <= evaluation["accuracy"] <= evaluation["accuracy_high"]
        assert set(evaluation["pass_at_k"]) == {"1", "2"}
        assert (evaluation["difference_to_base"] is None) == (stage == "base")


def test_the_export_loads_elsewhere_and_agrees_with_the_server(finished: Workflow) -> None:
    from transformers import AutoModelForCausalLM

    merged = finished.folder / RUN / "export/merged"
    assert AutoModelForCausalLM.from_pretrained(merged).config.model_type == "qwen3"
    assert (finished.folder / RUN / "export/adapter/adapter_config.json").is_file()


def test_the_cards_say_what_was_reached_and_how(finished: Workflow) -> None:
    evaluation = read(finished.folder / RUN / "grpo/evaluation/evaluation.json")
    for kind, library in (("adapter", "peft"), ("merged", "transformers")):
        text = (finished.folder / RUN / "export" / kind / "README.md").read_text()
        _, head, body = text.split("---\n", 2)
        values = yaml.safe_load(head)
        assert values["library_name"] == library
        (metric,) = values["model-index"][0]["results"][0]["metrics"]
        assert metric["value"] == evaluation["accuracy"]
        made = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
        assert made["data"]["num_problems"] == 100
        assert [stage["kind"] for stage in made["stages"]] == ["supervised", "grpo"]
        assert "The base model's folder names no licence" in body


def export_model(
    finished: Workflow, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return run(finished, "-m", "scripts.export_model", str(RUN), *words, **environment)


def run(finished: Workflow, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=finished.folder, capture_output=True, text=True, timeout=300,
        env=workflow_environment() | UNREACHABLE_HUB | environment, check=False,
    )  # fmt: skip


def test_the_exporter_shows_what_a_run_has(finished: Workflow) -> None:
    said = export_model(finished)
    assert said.returncode == 0, said.stderr
    for stage in ("supervised", "grpo"):
        paths = read(finished.folder / RUN / stage / "checkpoint.json")["checkpoints"]
        assert f"{stage}: 2 optimizer steps" in said.stdout
        assert paths["state"] in said.stdout
        assert paths["sampler"] in said.stdout


def test_generated_programs_answer_alike_through_peft_and_through_tinker(
    finished: Workflow,
) -> None:
    questions = ["3+4=", "7+1=", "9+9="]
    assert export_model(finished, "--generate-script", "with_peft.py").returncode == 0
    words = ("--generate-script", "with_tinker.py", "--through", "tinker")
    of_tinker = export_model(finished, *words)
    assert of_tinker.returncode == 0, of_tinker.stderr
    model = next((finished.folder / "models").glob("tiny-*/"))
    program = (finished.folder / "with_tinker.py").read_text()
    for said in (of_tinker.stdout, program.split('"""')[1]):
        assert f"tinsmith run --model {model.name}={model.resolve()} --store" in said
        assert "-- python with_tinker.py" in said
    plain = run(finished, "with_peft.py", *questions)
    assert plain.returncode == 0, plain.stderr
    serve = ("-m", "tinsmith.cli", "run", "--model", f"{model.name}={model}", "--threads=1", "--")
    through = run(finished, *serve, sys.executable, "with_tinker.py", *questions)
    assert through.returncode == 0, through.stderr
    assert len(plain.stdout.splitlines()) == len(questions)
    assert plain.stdout.strip()
    assert plain.stdout in through.stdout


def test_any_stage_is_exported_and_told_before_it_is_pushed(finished: Workflow) -> None:
    words = ("--stage", "supervised", "--adapter", "taken", "--push", "me/adder")
    said = export_model(finished, *words, "--dry-run")
    assert said.returncode == 0, said.stderr
    taken = finished.folder / "taken"
    assert {file.name for file in taken.iterdir()} == {
        line.split()[0] for line in said.stdout.splitlines() if line.endswith("bytes")
    }
    weights = "adapter_model.safetensors"
    stage = finished.folder / RUN / "supervised/weights" / weights
    assert (taken / weights).read_bytes() == stage.read_bytes()
    refused = export_model(finished, *words)
    assert "taken is there already" in refused.stderr
    shutil.rmtree(taken)
    refused = export_model(finished, *words)
    assert refused.returncode == 2
    assert "could not be pushed to me/adder, because the hub cannot be reached" in refused.stderr


def test_what_cannot_be_exported_is_refused_with_what_to_do(finished: Workflow) -> None:
    for words, message in (
        (("--gguf", "model.gguf"), "convert_hf_to_gguf.py MERGED --outfile model.gguf"),
        (("--stage", "gpro", "--merged", "m"), "the run must have the stage 'gpro'; it has"),
        (("--push", "me/adder"), "give one of them"),
        (("--merged", "m", "--push", "adder", "--dry-run"), "OWNER/NAME, of letters, digits"),
        (("--merged", "m", "--push", "me/adder"), "--push needs HF_TOKEN, a token of the hub"),
    ):
        said = export_model(finished, *words, HF_TOKEN="", HF_TOKEN_PATH="none")
        assert said.returncode == 2
        assert message in said.stderr
    assert not (finished.folder / "m").exists()


def test_every_job_is_recorded_and_its_files_are_the_ones_recorded(finished: Workflow) -> None:
    found = records(finished.folder)
    rules = sorted(record["rule"] for record in found.values())
    assert rules == sorted(
        ["check_setup", "prepare_model", "prepare_data", "export_run", "write_report"]
        + 2 * ["train_stage"]
        + 3 * ["evaluate_stage"]
    )
    for record in found.values():
        for file in (*record["inputs"].values(), *record["outputs"].values()):
            now = describe_file(finished.folder / file["path"])
            assert now["sha256"] == file["sha256"], file["path"]


def test_the_recorded_commands_are_the_ones_that_ran(finished: Workflow) -> None:
    record = records(finished.folder)[str(RUN / "grpo/run_metadata.json")]
    assert "-m scripts.train --settings" in record["command"]
    assert record["settings"]["stage"]["kind"] == "grpo"
    assert record["seeds"]["run"] == 0


def test_a_second_call_runs_no_job(finished: Workflow) -> None:
    said = finished.snakemake("--cores", "2")
    assert said.code == 0
    assert "Nothing to be done" in said.text


def test_a_finished_run_leaves_no_process(finished: Workflow) -> None:
    assert processes_in(finished.folder) == []


def test_the_report_shows_the_run(finished: Workflow) -> None:
    page = (finished.folder / "results/report.html").read_text()
    assert "1-digit addition" in page
    for stage in ("base", "supervised", "grpo"):
        assert f"evaluate {stage}" in page
    assert len(page) < 1_000_000


def test_snakemakes_own_report_holds_the_page_and_the_transcripts(finished: Workflow) -> None:
    said = finished.snakemake("--report", "dag.html")
    assert said.code == 0, said.text
    assert "report.html" in (finished.folder / "dag.html").read_text()
