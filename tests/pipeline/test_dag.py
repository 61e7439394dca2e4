"""The DAG: what is planned when, and what stops before anything is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.workflow import ROOT, Workflow

STAGES = ("supervised", "rejection", "grpo")
EVERYTHING = {
    "check_setup",
    "prepare_model",
    "prepare_data",
    *(f"train_stage {stage}" for stage in STAGES),
    *(f"evaluate_stage {stage}" for stage in ("base", *STAGES)),
    "export_run",
    "write_report",
}
OF_A_RUN = {job for job in EVERYTHING if job.startswith(("train", "evaluate", "export"))}


def config(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"kind": "tiny"},
        "data": {"kind": "arithmetic"},
        "task": {"kind": "arithmetic"},
        "stages": [{"kind": stage, "steps": 2} for stage in STAGES],
    } | changes


def stages(name: str, **changes: Any) -> list[dict[str, Any]]:
    return [s | (changes if s["kind"] == name else {}) for s in config()["stages"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A workflow whose every job has run, with programs that only write their outputs."""
    workflow = Workflow(tmp_path_factory.mktemp("dag"), config(), stand_ins=True)
    said = workflow.snakemake("--cores", "2")
    assert said.code == 0, said.text
    return workflow


@pytest.fixture
def replan(finished: Workflow) -> Callable[..., set[str]]:
    """The jobs that a changed config plans again."""

    def jobs(**changes: Any) -> set[str]:
        finished.configure(config(**changes))
        said = finished.plan()
        finished.configure(config())
        assert said.code == 0, said.text
        return said.jobs

    return jobs


def test_a_fresh_folder_plans_every_job_once(tmp_path: Path) -> None:
    said = Workflow(tmp_path, config(), stand_ins=True).plan()
    assert said.jobs == EVERYTHING
    assert said.text.count("\nrule train_stage:") == 3


def test_a_second_call_runs_no_job(finished: Workflow) -> None:
    said = finished.snakemake("--cores", "2")
    assert said.code == 0
    assert "Nothing to be done" in said.text


def test_a_stages_setting_replans_that_stage_and_what_follows(
    replan: Callable[..., set[str]],
) -> None:
    after_grpo = {"train_stage grpo", "evaluate_stage grpo", "export_run", "write_report"}
    assert replan(stages=stages("grpo", learning_rate=1e-3)) == after_grpo
    after_rejection = after_grpo | {"train_stage rejection", "evaluate_stage rejection"}
    assert replan(stages=stages("rejection", temperature=0.8)) == after_rejection


def test_an_evaluations_setting_replans_evaluations_and_what_tells_of_them(
    replan: Callable[..., set[str]],
) -> None:
    evaluations = {job for job in EVERYTHING if job.startswith("evaluate_stage")}
    assert replan(evaluation={"num_problems": 100}) == evaluations | {"export_run", "write_report"}


def test_a_new_seed_plans_its_run_alone(replan: Callable[..., set[str]]) -> None:
    assert replan(seeds=[0, 1]) == {f"{job} seed=1" for job in OF_A_RUN} | {"write_report"}


def test_a_swept_value_plans_its_runs_and_shares_model_and_data(
    replan: Callable[..., set[str]],
) -> None:
    planned = replan(sweep={"grpo.learning_rate": [1e-4, 1e-3]})
    assert planned == OF_A_RUN | {"write_report"}


def test_how_a_job_runs_is_no_reason_to_run_it_again(replan: Callable[..., set[str]]) -> None:
    assert replan(backend={"threads": 2}) <= {"write_report"}


def test_what_is_watched_is_no_reason_to_train_again(replan: Callable[..., set[str]]) -> None:
    assert replan(monitors=[{"metric": "kl_nats", "above": 0.5}]) == {"write_report"}


def test_where_metrics_are_shown_is_no_reason_to_train_again(
    replan: Callable[..., set[str]],
) -> None:
    assert replan(trackers=[{"kind": "tensorboard"}]) == {"check_setup", "write_report"}


def test_which_checkpoints_are_kept_is_no_reason_to_run_anything_again(
    replan: Callable[..., set[str]],
) -> None:
    changed = {"keep_last": "all", "keep_best": False, "existing": "raise"}
    assert replan(checkpoints=changed) == set()


def test_what_is_watched_and_kept_stands_in_the_command_that_trains(tmp_path: Path) -> None:
    values = config(monitors=[{"metric": "kl_nats", "above": 0.5}], checkpoints={"keep_last": 4})
    said = Workflow(tmp_path, values, stand_ins=True).plan("--printshellcmds")
    assert said.text.count('--monitors \'{"monitors":[{"metric":"kl_nats","above":0.5') == 3
    assert said.text.count('--checkpoints \'{"keep_last":4,"keep_best":true,') == 3


def test_a_changed_comment_replans_nothing_and_a_changed_pin_no_training(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, config(), stand_ins=True)
    assert workflow.snakemake("--cores", "2").code == 0
    for file in (tmp_path / "config.yaml", tmp_path / "rules/train.smk", tmp_path / "Snakefile"):
        file.write_text(file.read_text() + "\n# A comment.\n")
    assert workflow.plan().jobs == set()
    (tmp_path / "envs/engine.txt").write_text("torch==1.0\n")
    assert workflow.plan().jobs == {"check_setup", "write_report"}


def test_a_single_stage_is_a_target(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, config(), stand_ins=True)
    target = "results/seed=0/rejection/checkpoint.json"
    assert workflow.plan(target).jobs == {
        "check_setup",
        "prepare_model",
        "prepare_data",
        "train_stage supervised",
        "train_stage rejection",
    }
    said = workflow.snakemake("--cores", "2", target)
    assert said.code == 0, said.text
    assert (tmp_path / target).exists()
    assert not (tmp_path / "results/seed=0/grpo").exists()


def test_a_stage_that_is_not_in_the_config_is_no_target(tmp_path: Path) -> None:
    said = Workflow(tmp_path, config(), stand_ins=True).plan("results/seed=0/gpro/checkpoint.json")
    assert said.code != 0
    assert "results/seed=0/gpro/checkpoint.json" in said.text


def test_a_model_of_the_user_is_never_an_output(tmp_path: Path) -> None:
    """Snakemake deletes the outputs of a job before it runs; a user's model must not be one."""
    model = make_model(tmp_path / "models" / "mine")
    values = config(model={"kind": "path", "path": "models/mine"})
    workflow = Workflow(tmp_path, values, stand_ins=True)
    assert workflow.plan("--forceall").jobs == EVERYTHING - {"prepare_model"}
    assert workflow.snakemake("--cores", "2", "--forceall").code == 0
    assert (model / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_configs_that_are_shipped_can_be_planned(file: Path, tmp_path: Path) -> None:
    values = config(model={"kind": "tiny", "hidden_size": 64}, sweep={"grpo.steps": [1, 2]})
    workflow = Workflow(tmp_path, values, stand_ins=True)
    said = workflow.plan("--configfile", f"configs/{file.name}")
    assert said.code == 0, said.text
    assert "hidden_size" not in said.text
    assert "prepare_model" in said.jobs


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_configs_that_are_shipped_can_be_planned_with_a_tiny_model(
    file: Path, tmp_path: Path
) -> None:
    workflow = Workflow(tmp_path, config(), stand_ins=True)
    changes = ("model={kind: tiny}", "backend={kind: local, device: cpu}")
    said = workflow.plan("--configfile", f"configs/{file.name}", "--config", *changes)
    assert said.code == 0, said.text
    assert '"model":{"kind":"tiny"' in said.text
    assert '"device":"cpu"' in said.text


def test_values_on_the_command_line_have_their_types(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, config(), stand_ins=True)
    said = workflow.plan("--config", "seeds=[0, 1]", "lora={rank: 4}")
    assert said.code == 0, said.text
    assert "train_stage grpo seed=1" in said.jobs
    assert '"rank":4' in said.text


def test_the_environment_chooses_the_backend(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, config(), stand_ins=True)
    said = workflow.plan("--configfile", "configs/qwen3-4b-gsm8k.yaml", TINKER_BACKEND="hosted")
    assert '"kind":"hosted"' in said.text
    assert '"kind":"local"' not in said.text


def test_results_go_where_the_environment_says_and_the_base_model_is_the_one_it_names(
    tmp_path: Path, qwen3_dir: Path
) -> None:
    values = {key: value for key, value in config().items() if key != "model"}
    workflow = Workflow(tmp_path, values, stand_ins=True)
    elsewhere = tmp_path / "elsewhere"
    outside = {"TINKER_DEBATE_LOG_ROOT": f"{elsewhere}/", "TINKER_LOCAL_MIN_P": "0.25"}
    said = workflow.plan(TINKER_DEBATE_BASE_MODEL=str(qwen3_dir), **outside)
    assert f"--model {qwen3_dir}" in said.text
    said = workflow.snakemake("--cores", "2", **outside)
    assert said.code == 0, said.text
    assert (elsewhere / "report.html").exists()
    assert (elsewhere / "seed=0/grpo/checkpoint.json").exists()
    assert not (tmp_path / "results").exists()
    assert '"backend.min_p":"0.25 (TINKER_LOCAL_MIN_P)"' in said.text
    assert '"min_p":0.25' in said.text
    said = workflow.plan("--config", "results=here", TINKER_DEBATE_LOG_ROOT=str(elsewhere))
    assert "here/report.html" in said.text
    assert f"{elsewhere}/report.html" not in said.text


def test_lint_finds_nothing() -> None:
    said = Workflow.__new__(Workflow)
    said.folder = ROOT
    assert "Congratulations" in said.snakemake("--lint").text


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (config(modell={}), "config.yaml: modell is not a known key; did you mean 'model'?"),
        (config(lora={"rank": "big"}), "config.yaml: lora.rank must be a whole number, got 'big'"),
        (config(stages=[{"kind": "grppo", "steps": 1}]), "stages[0].kind must be one of"),
        (config(stages=stages("grpo", samples_per_problem=1)), "must be at least 2, got 1"),
        (config(sweep={"grpo.lr": [1]}), "config.yaml: sweep.grpo.lr is not a key of the config"),
        (config(backend={"api_key": "x"}), "backend.api_key looks like a secret"),
        (config(model={"kind": "path", "path": "no"}), "model directory no must exist"),
        (config(model={"kind": "path", "path": "bare"}), "bare must hold its weights as safetens"),
        (
            config(data={"kind": "file", "path": "no.csv", "held_out": 500}),
            "config.yaml: data.path must be a file",
        ),
        (config(trackers=2 * [{"kind": "trackio"}]), "trackers[1].kind must be unique"),
        (config(trackers=[{"kind": "wandb"}], container=True), "left out with container"),
        (config(task={"kind": "nowhere:Task"}), "No module named 'nowhere'"),
        (config(task={"kind": "mine:Tusk"}), "has no class 'Tusk'; it has Task"),
        (
            config(task={"kind": "mine:Task"}),
            "config.yaml: task.kind: mine:Task must have the method question",
        ),
        (config(paradigm={"kind": "mine:Task"}), "must have the method play"),
    ],
)
def test_a_bad_config_stops_before_any_job(
    values: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    make_model(tmp_path / "bare")
    (tmp_path / "mine.py").write_text("class Task: pass\n")
    (tmp_path / "bare/model.safetensors").unlink()
    said = Workflow(tmp_path, values, stand_ins=True).snakemake("--cores", "1")
    assert said.code != 0
    assert complaint in said.text
    assert "Traceback" not in said.text
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "problems.jsonl must hold at least one row, but it is empty"),
        ('{"question": "1+1", "answer": 2}\n{"question": "1+2"}\n', "line 2 has no field 'answer'"),
    ],
)
def test_bad_data_stops_before_any_training(text: str, complaint: str, tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    (tmp_path / "problems.jsonl").write_text(text)
    values = config(
        model={"kind": "path", "path": "model"},
        data={"kind": "file", "path": "problems.jsonl", "held_out": 500},
    )
    said = Workflow(tmp_path, values, stand_ins=False).snakemake("--cores", "1")
    assert said.code != 0
    assert "prepare_data: problems.jsonl" in said.text
    assert complaint in said.text
    assert "Traceback" not in said.text
    assert not (tmp_path / "logs/seed=0").exists()
