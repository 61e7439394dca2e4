"""README.md of an export: what it is, what it reached, how it was made, how to load it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tinsmith.runs import BASE
from tinsmith.trained import TrainedStage, accuracy_text

BODY = """# {title}

{what} of `{base}`, trained by Tinsmith through the Tinker API.

| | |
|---|---|
| base model | `{base}` |
| run | `{run}`, seed {seed} |
| stages | {stages} |
| LoRA rank | {rank} |
| SHA-256 of the trained weights | `{digest}` |
| Tinsmith's commit | {commit} |

## What it reached

{reached}

## How to use it

```python
{code}
```

## How it was made

{data}

```yaml
{made}```

## Licence

{licence}
"""
ADAPTER_CODE = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "PATH_OF_THIS_FOLDER")"""
MERGED_CODE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")"""


def adapter_card(stages: Sequence[TrainedStage], base: str, before: dict[str, Any] | None) -> str:
    """The card of a PEFT folder with the adapter of the last of `stages`; `before` is the base
    model's evaluation."""
    code = ADAPTER_CODE.format(base=base)
    return _card(stages, base, before, "peft", "A LoRA adapter", code)


def merged_card(stages: Sequence[TrainedStage], base: str, before: dict[str, Any] | None) -> str:
    """The card of a model with the adapter of the last of `stages` merged."""
    return _card(stages, base, before, "transformers", "A LoRA fine-tune, merged,", MERGED_CODE)


def base_reference(model_name: str, model_dir: Path) -> str:
    """How a loader finds the base model: its hub name, or where it lies."""
    return model_name if "/" in model_name else model_dir.as_posix()


def _card(
    stages: Sequence[TrainedStage],
    base: str,
    before: dict[str, Any] | None,
    library: str,
    what: str,
    code: str,
) -> str:
    from huggingface_hub import ModelCardData

    last = stages[-1]
    checkpoint, data = last.checkpoint, last.data()
    title = f"{checkpoint.base_model}, {last.name}"
    licence = _licence(last.model_dir)
    head = ModelCardData(
        base_model=base,
        library_name=library,
        license=licence,
        pipeline_tag="text-generation",
        tags=["lora", "tinsmith", *sorted({stage.settings["stage"]["kind"] for stage in stages})],
        datasets=[data["name"]] if data and data["kind"] == "hub" else None,
        model_name=title,
        eval_results=_result(last, data),
    )
    git = last.record["git"]
    body = BODY.format(
        title=title,
        what=what,
        base=base,
        run=checkpoint.run,
        seed=checkpoint.seed,
        stages=", ".join(f"`{s.name}` ({s.checkpoint.step} optimizer steps)" for s in stages),
        rank=checkpoint.lora_rank,
        digest=checkpoint.weights_sha256,
        commit=f"`{git['commit']}`{', changed' if git['is_dirty'] else ''}" if git else "unknown",
        reached=_reached(stages, before),
        code=code,
        data=_data(last),
        made=yaml.safe_dump(_made(stages, data), sort_keys=False, allow_unicode=True),
        licence=f"That of the base model: {licence}." if licence else UNKNOWN_LICENCE,
    )
    return f"---\n{head.to_yaml()}\n---\n\n{body}"


UNKNOWN_LICENCE = (
    "The base model's folder names no licence. Whoever shares this must find out that of the base"
    " model and of the data, and name it above as `license`."
)


def _licence(model_dir: Path) -> str | None:
    """The licence that the base model's own card names."""
    from huggingface_hub import ModelCard

    file = model_dir / "README.md"
    if not file.is_file():
        return None
    licence = ModelCard.load(file).data.get("license")
    return str(licence) if licence else None


def _result(stage: TrainedStage, data: dict[str, Any] | None) -> list[Any] | None:
    from huggingface_hub import EvalResult

    evaluation = stage.evaluation
    if evaluation is None or data is None:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data["name"] if data["kind"] == "hub" else data["kind"],
            dataset_name=f"{stage.settings['task']['kind']}, held out",
            metric_type="accuracy",
            metric_value=evaluation["accuracy"],
            metric_name=f"accuracy, {accuracy_text(evaluation)}",
        )
    ]


def _reached(stages: Sequence[TrainedStage], before: dict[str, Any] | None) -> str:
    rows = [(BASE, before), *((stage.name, stage.evaluation) for stage in stages)]
    measured = [(name, evaluation) for name, evaluation in rows if evaluation]
    if not measured:
        return "It was not evaluated."
    _, last = measured[-1]
    lines = ["| | accuracy, 95 % interval | pass@k |", "|---|---|---|"]
    for name, evaluation in measured:
        shares = (f"{k}: {100 * share:.1f} %" for k, share in evaluation["pass_at_k"].items())
        lines.append(f"| `{name}` | {accuracy_text(evaluation)} | {', '.join(shares)} |")
    lines.append(
        f"\n{last['num_problems']} held-out problems, {last['samples_per_problem']} samples each at"
        f" temperature {last['temperature']:g}, at most {last['max_tokens']} tokens; intervals:"
        f" {last['interval']}."
    )
    return "\n".join(lines)


def _data(stage: TrainedStage) -> str:
    digests = (f"{name} `{file['sha256']}`" for name, file in stage.problems.items())
    return f"SHA-256 of the problems: {', '.join(digests)}."


def _made(stages: Sequence[TrainedStage], data: dict[str, Any] | None) -> dict[str, Any]:
    """The sections of a config.yaml that make it again, as far as the run's records have them."""
    last = stages[-1].settings
    sections = {name: last[name] for name in ("task", "paradigm", "lora") if name in last}
    return {
        **({"data": data} if data else {}),
        **sections,
        "stages": [stage.settings["stage"] for stage in stages],
    }
