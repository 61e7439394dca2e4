"""The ready configs of recipes, made small: a tiny model, made-up data, few steps."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.pipeline.workflow import ROOT, Workflow
from tinsmith.serving import Endpoint

MODEL = "Qwen/Qwen3-8B"
RUN = Path("results/seed=0")
# What stands for a config's own data: sums as GSM8K writes them.
SUMS = {"kind": "file", "path": "sums.jsonl", "held_out": 8}
EVALUATION = {"num_problems": 4, "samples_per_problem": 2, "max_tokens": 12, "pass_at_k": [1, 2]}
SIZES = {"batch_size": 8, "rl_max_tokens": 12, "max_tokens": 12, "max_steps": 2, "save_every": 1}
SIZES |= {"groups_per_batch": 4, "group_size": 2}
# Of a stage of Tinsmith's own.
GRPO = {"steps": 1, "problems_per_step": 4, "samples_per_problem": 2, "max_tokens": 4}
GRPO |= {"eval_problems": 4, "zero_variance": "drop", "no_signal": "skip"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def small(name: str, hub: Path, endpoint: Endpoint) -> dict[str, Any]:
    """A ready config with another model, a server that runs already, and tiny sizes."""
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    for stage in config["stages"]:
        if stage["kind"] != "cookbook":
            stage |= GRPO
            continue
        arguments = stage["arguments"]
        of_config = {"max_steps", *arguments} & {*SIZES}
        arguments |= {key: SIZES[key] for key in of_config}
        if "renderer_name" in arguments:
            arguments["renderer_name"] = "qwen3"
    changes = {
        "model": {"kind": "path", "path": str(hub / MODEL), "name": MODEL},
        "backend": {"kind": "remote", "url": endpoint.base_url, "device": "cpu"},
        "data": SUMS,
        "evaluation": EVALUATION,
        "resources": {},
    }
    return config | changes


def make_workflow(folder: Path, config: dict[str, Any], hub: Path) -> Workflow:
    """A folder with the environment of the cookbook and the hub's data sets in it."""
    workflow = Workflow(folder, config, stand_ins=False)
    (folder / ".venvs").symlink_to(ROOT / ".venvs")
    for data_set in ("Anthropic", "HuggingFaceH4", "zwhe99"):
        (folder / data_set).symlink_to(hub / data_set)
    chats = (hub / "HuggingFaceH4/no_robots/default/train.jsonl").read_text()
    for name in ("conversations.jsonl", "distilled.jsonl"):
        (folder / name).write_text(chats)
    sums = [(a, b) for a in range(5) for b in range(5)]
    problems = [{"question": f"What is {a} + {b}?", "answer": f"#### {a + b}"} for a, b in sums]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return workflow


def offline(endpoint: Endpoint, hub: Path) -> dict[str, str]:
    """For Snakemake: the key of the server, and no thought of asking the hub."""
    return {
        "TINKER_API_KEY": endpoint.api_key,
        "HF_HOME": str(hub / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
