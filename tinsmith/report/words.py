"""The few words in which the report names the model, the problems and the machine."""

from pathlib import Path

from tinsmith.config import ArithmeticData, FileData, HubModel, PathModel
from tinsmith.report.results import Results

_OPERATIONS = {"+": "addition", "-": "subtraction", "*": "multiplication"}


def name_of_model(results: Results) -> str:
    """For the title."""
    model = results.config.model
    if isinstance(model, HubModel):
        return model.name
    return Path(model.path).name if isinstance(model, PathModel) else "A tiny Qwen3"


def describe_model(results: Results) -> str:
    """Where it came from."""
    model = results.config.model
    if isinstance(model, HubModel):
        return f"{model.name} at {model.revision[:10]}"
    if isinstance(model, PathModel):
        return model.path
    return (
        f"{model.num_layers} layers of width {model.hidden_size}, pretrained here for"
        f" {model.pretrain_steps} steps"
    )


def name_of_data(results: Results) -> str:
    """For the title."""
    data = results.config.data
    if isinstance(data, ArithmeticData):
        operations = " and ".join(_OPERATIONS[operation] for operation in data.operations)
        return f"{data.digits}-digit {operations}"
    return Path(data.path).name if isinstance(data, FileData) else data.name


def describe_data(results: Results) -> str:
    """How many problems there were, and what was left out."""
    stats = next(iter(results.data_stats.values()))
    left_out = [
        f"{len(stats[key])} {word} left out"
        for key, word in (("duplicates", "duplicates"), ("rejected", "bad rows"))
        if stats[key]
    ]
    counts = f"{stats['num_train']} to train on, {stats['num_heldout']} held out"
    return ", ".join([counts, *left_out])


def describe_machine(results: Results) -> str:
    """Its accelerator, or its processor."""
    job = results.jobs[-1]
    gpus = [gpu["name"] for gpu in job["accelerators"]]
    if gpus:
        return f"{len(gpus)} x {gpus[0]}"
    return f"{job['machine']['processor']}, {job['machine']['num_cores']} cores"
