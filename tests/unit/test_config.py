"""The config: what it accepts, and the one paragraph that each fault gets."""

from pathlib import Path
from typing import Any

import pytest

from tests.configs import complaint, config, grpo, recipe
from tinsmith.config import Config, Grpo, PromptedTask, check, load
from tinsmith.errors import TinsmithError


def test_defaults_fill_what_is_left_out() -> None:
    checked = check(config())
    assert checked.lora.rank == 32
    assert checked.seeds == (0,)
    assert isinstance(checked.stages[1], Grpo)
    assert checked.stages[1].name == "grpo"


def test_a_checked_config_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        check(config()).lora.rank = 8  # pyright: ignore[reportAttributeAccessIssue]


def test_a_resolved_config_is_itself_valid() -> None:
    checked = check(config(sweep={"grpo.learning_rate": [1e-4, "auto"]}))
    assert check(checked.model_dump(mode="json")) == checked


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (config(modell=1), "config.yaml: modell is not a known key; did you mean 'model'?"),
        (grpo(sample_per_problem=4), "stages[1].sample_per_problem is not a known key; did you"),
        (grpo(samples_per_problem=1), "stages[1].samples_per_problem must be at least 2, got 1"),
        (grpo(steps="ten"), "stages[1].steps must be a whole number, got 'ten'"),
        (grpo(steps=1.5), "stages[1].steps must be a whole number, got 1.5"),
        (grpo(steps=True), "stages[1].steps must be a whole number, got True"),
        (grpo(learning_rate="fast"), "learning_rate must be a number or 'auto', got 'fast'"),
        (grpo(learning_rate=float("nan")), "stages[1].learning_rate"),
        (grpo(learning_rate=1e-3, reference_batch_size=8), "reference_batch_size scales learning"),
        (grpo(max_resamples=5), "stages[1].max_resamples needs zero_variance 'resample', got 5"),
        (
            config(backend={"kind": "hosted", "lora_alpha": 16.0}),
            "backend.lora_alpha must be 32 with",
        ),
        (
            grpo(kind="grppo"),
            "stages[1].kind must be one of supervised, rejection, grpo, cookbook, got",
        ),
        (grpo(name="supervised"), "stages[1].name must be unique, got 'supervised' twice"),
        (grpo(name="base"), "stages[1].name must not be one of"),
        (grpo(name="Gr/po"), "stages[1].name must hold small letters"),
        (config(model={}), "model needs its `kind`"),
        (config(model={"kind": "tinny"}), "model.kind must be one of tiny, hub, path, got 'tinny'"),
        (config(model={"kind": "path"}), "model.path is required"),
        (config(model={"kind": "hub", "name": "a/b", "revision": "main"}), "full commit hash"),
        (config(lora={"rank": 0}), "lora.rank must be at least 1, got 0"),
        (config(lora=3), "lora must be a mapping, got 3"),
        (config(seeds=[]), "seeds must have at least 1 entries"),
        (config(seeds=[1, 1]), "seeds must be distinct"),
        (config(stages=[]), "stages must have at least 1 entries"),
        (config(data={"kind": "arithmetic", "digits": 1, "num_problems": 101}), "at most 100"),
        (config(data={"kind": "file", "path": "a.txt", "held_out": 9}), "end in .jsonl, .csv or"),
        (config(evaluation={"num_problems": 437}), "at most data.held_out = 500, because what"),
        (config(evaluation={"num_problems": 437}), "got 437 + 64"),
        (config(checkpoints={"keep_last": -1}), "keep_last must be at least 0 or 'all', got -1"),
        (
            config(checkpoints={"keep_last": "every"}),
            "checkpoints.keep_last must be a whole number",
        ),
        (
            config(checkpoints={"existing": "resumee"}),
            "checkpoints.existing must be 'resume', 'delete'",
        ),
        (config(checkpoints={"keep": 3}), "checkpoints.keep is not a known key; did you mean"),
        (config(evaluation={"pass_at_k": [8]}), "evaluation.pass_at_k must not exceed"),
        (config(evaluation={"temperature": 0.0}), "samples_per_problem must be 1 at temperature 0"),
        (config(task={"kind": "qa", "grader": "exact", "prompt_template": "?"}), "{question}"),
        (config(backend={"kind": "hosted"}), "model.kind must be 'hub' with backend.kind 'hosted'"),
        (
            recipe(arguments={"base_url": "x"}),
            "arguments.base_url must be left out: the serv",
        ),
        (recipe(arguments={"seed": 3}), "stages[0].arguments.seed must be left out: seeds are"),
        (recipe(arguments={"a b": 3}), "stages[0].arguments.a b must be an argument's name"),
        (recipe(arguments={"teacher": "{sft.state}"}), "must name an earlier stage, got '{sft.st"),
        (
            recipe(arguments={"a": [1, "{sft.sampler}"]}),
            "arguments.a[1] must name an earlier stage",
        ),
        (recipe(arguments={"a": ["b", "c,d"]}), "stages[0].arguments.a[1] must be without a comma"),
        (recipe(reads=["sft"]), "stages[0].reads must list earlier stages of kind 'cookbook'"),
        (recipe(recipe="a b"), "stages[0].recipe must be a module's name, like chat_sl.train"),
        (recipe() | {"container": True}, "container must be false with stages[0].kind 'cookbook'"),
        (
            recipe() | {"trackers": [{"kind": "tensorboard"}]},
            "trackers must be left out where every stage is of kind 'cookbook'",
        ),
        (
            recipe() | {"monitors": [{"metric": "kl_nats", "above": 1}]},
            "monitors must be left out where every stage is of kind 'cookbook': nothing watches",
        ),
        (
            recipe() | {"checkpoints": {"keep_last": 3}},
            "every stage is of kind 'cookbook': a recipe saves as its own `arguments` say",
        ),
        (recipe() | {"lora": {"train_mlp": False}}, "train_unembed must be true with stages[0]"),
        (["model"], "the config must be a mapping of sections, got ['model']"),
        (None, "the config must be a mapping of sections, got None"),
    ],
)
def test_every_fault_names_the_key_the_rule_and_the_value(values: Any, said: str) -> None:
    assert said in complaint(values)


def test_all_faults_are_told_at_once() -> None:
    message = complaint(config(lora={"rank": 0}, seeds=3))
    assert "lora.rank must be at least 1, got 0; seeds must be a list, got 3" in message


@pytest.mark.parametrize(
    "values",
    [
        config(backend={"api_key": "x"}),
        config(backend={"kind": "local", "TINKER_API_KEY": "x"}),
        config(backend={"apiKey": "x"}),
        config(TINKER_API_KEY="x"),
        config(trackers=[{"kind": "wandb", "api-key": "x"}]),
        config(task={"kind": "mine:Task", "options": {"judge": [{"hf_token": "x"}]}}),
        config(task={"kind": "mine:Task", "options": {"a": {"Authorization": "x"}}}),
        config(paradigm={"kind": "mine:Play", "options": {"token": "x"}}),
        config(task={"kind": "arithmetic", "system_prompt": "hf_abcdefghijklmnopqrst"}),
        config(stages=[{"kind": "supervised", "steps": 1, "name": "tml-abcdefghijklmnop"}]),
        config(task={"kind": "arithmetic", "system_prompt": "tml-local-abcdef_ghijk-lmnop"}),
        config(task={"kind": "arithmetic", "system_prompt": "Use the key sk-abcdefghijklmno."}),
        config(sweep={"task.system_prompt": ["a", "hf_abcdefghijklmnopqrst"]}),
        config(backend={"url": "https://me:abcdefgh@node:8443"}),
        config(task={"kind": "mine:Task", "options": {"a": [["Bearer abcdefgh1jklmn0pq"]]}}),
        config(task={"kind": "mine:Task", "options": {"a": "wandb_v1_abcdefghijklmno"}}),
    ],
)
def test_a_secret_in_the_config_is_refused_without_repeating_it(values: dict[str, Any]) -> None:
    message = complaint(values)
    assert "secrets do not belong in the config" in message
    assert "abcdef" not in message


@pytest.mark.parametrize(
    "options",
    [
        {"stop_token": "</s>", "max_tokens": 5, "key": "id", "keywords": ["secret", "password"]},
        {"prompt": "Bearer certificates of insurance"},
        {"prompt": "Answer task-oriented-questions; see https://example.org/a:b@c"},
        {"monkey": "disk-defragmentation-tool", "secretary": "x", "tokenizer": "hf_fast"},
    ],
)
def test_what_only_looks_a_little_like_a_secret_is_none(options: dict[str, Any]) -> None:
    check(config(task={"kind": "mine:Task", "options": options}))


def test_an_exponent_without_a_point_is_the_number_it_looks_like(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: {kind: tiny}\ndata: {kind: arithmetic}\ntask: {kind: arithmetic}\n"
        "stages: [{kind: grpo, steps: 1, learning_rate: 1e-4}]\n"
    )
    assert load(file).stages[0].model_dump()["learning_rate"] == 1e-4


def test_a_file_that_is_no_yaml_says_where(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {kind: tiny\nstages: []\n")
    with pytest.raises(TinsmithError, match=r"not valid YAML: .*line 2"):
        load(file)


def test_a_key_of_the_config_wins_over_the_environment_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = {"kind": "hub", "name": "Qwen/Qwen3-4B", "revision": "0" * 40}
    monkeypatch.setenv("TINKER_BACKEND", "hosted")
    monkeypatch.setenv("TINKER_LOCAL_MIN_P", "0.25")
    assert check(config(model=hub)).backend.kind == "hosted"
    assert check(config(model=hub, backend={"kind": "local"})).backend.kind == "local"
    assert check(config(model=hub)).backend.min_p == 0.25
    assert check(config(model=hub, backend={"min_p": 0.0})).backend.min_p == 0
    monkeypatch.setenv("TINKER_LOCAL_MIN_P", "")
    assert check(config(model=hub)).backend.min_p == 0


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TINKER_BACKEND", "api", "TINKER_BACKEND must be local, remote or hosted, got 'api'"),
        ("TINKER_LOCAL_BACKEND", "unsloth", "TINKER_LOCAL_BACKEND must be transformers, the only"),
        ("TINKER_LOCAL_MIN_P", "nan", "TINKER_LOCAL_MIN_P must be a number from 0 to 1, got 'nan'"),
        ("TINKER_LOCAL_MINP", "0.1", "TINKER_LOCAL_MINP is not a setting; did you mean"),
        ("TINKER_DEBATE_MODEL", "x", "TINKER_DEBATE_MODEL is not a setting; did you mean"),
        ("TINKER_DEBATE_BASE_MODEL", "Qwen/Qwen3-4B", "must be a model's directory, or a hub"),
        ("TINKER_DEBATE_LOG_ROOT", "a{b", "results must be a folder's path without braces"),
        ("TINKER_LOCAL_DEVICE", "cuda:1", "must be auto, cpu or cuda, got 'cuda:1'"),
    ],
)
def test_wrong_variables_of_the_environment_are_refused(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert said in complaint({k: v for k, v in config().items() if k != "model"})


def test_the_base_model_and_the_results_folder_have_defaults_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {key: value for key, value in config().items() if key != "model"}
    assert check(values).model.kind == "tiny"
    monkeypatch.setenv("TINKER_DEBATE_BASE_MODEL", f"Qwen/Qwen3-4B@{'0' * 40}")
    monkeypatch.setenv("TINKER_DEBATE_LOG_ROOT", "/scratch/results/")
    model = {"kind": "hub", "name": "Qwen/Qwen3-4B", "revision": "0" * 40}
    assert check(values).model.model_dump() == model
    assert check(values).results == "/scratch/results"
    assert check(config(results="here")).results == "here"
    assert check(config()).model.kind == "tiny"
    monkeypatch.setenv("TINKER_DEBATE_BASE_MODEL", str(tmp_path))
    expected = {"kind": "path", "path": str(tmp_path), "name": None}
    assert check(values).model.model_dump() == expected


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"grpo.lr": [1]}, "sweep.grpo.lr is not a key of the config"),
        ({"grppo.steps": [1]}, "did you mean 'grpo'?"),
        ({"grpo.steps": [1, 0]}, "sweep.grpo.steps: stages[1].steps must be at least 1, got 0"),
        ({"grpo.steps": []}, "must list at least one value"),
        ({"grpo.steps": 3}, "sweep.grpo.steps must be a list, got 3"),
        ({"seeds": [[0]]}, "must be a stage's name or a section, a dot and a key of it"),
        ({"lora": [{}]}, "must be a stage's name or a section, a dot and a key of it"),
    ],
)
def test_swept_keys_exist_and_can_take_their_values(sweep: Any, said: str) -> None:
    assert said in complaint(config(sweep=sweep))


def test_every_config_that_the_repository_ships_is_valid() -> None:
    root = Path(__file__).parents[2]
    files = [root / "config.yaml", *sorted((root / "configs").glob("*.yaml"))]
    assert len(files) >= 3
    for file in files:
        assert isinstance(load(file), Config)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"digits": 4}, "data.digits must be 1 to 3 with model.kind 'tiny'"),
        ({"operations": ["*"]}, "data.operations must be some of +, - with model.kind 'tiny'"),
    ],
)
def test_problems_beyond_the_tiny_model_are_refused_before_it_is_made(
    data: dict[str, Any], said: str
) -> None:
    assert said in complaint(config(data={"kind": "arithmetic"} | data))


def test_no_prompt_of_a_shipped_config_ends_where_yaml_sees_a_comment() -> None:
    """`after ####.` without quotes loses its end."""
    files = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    told = [file for file in files if "####" in file.read_text()]
    assert len(told) >= 4
    for file in told:
        task = load(file).task
        assert isinstance(task, PromptedTask)
        assert task.system_prompt is not None
        assert task.system_prompt.endswith("####.")
