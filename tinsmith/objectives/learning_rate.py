"""The learning rate of a stage: a number from the config, or the published rule for LoRA."""

import json
import math
from pathlib import Path

from tinsmith import config
from tinsmith.errors import TinsmithError

BASE_RATE = 5e-5
LORA_FACTOR = 10.0
REFERENCE_HIDDEN_SIZE = 2000
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}


def lora_learning_rate(architecture: str, hidden_size: int) -> float:
    """lr = 5e-5 * 10 * (2000 / hidden_size)^p with p = 0.781 for Llama and 0.0775 for Qwen.

    Thinking Machines, tinker-cookbook, `hyperparam_utils.get_lr`. `architecture` is the
    `model_type` of a Hugging Face config.
    """
    for family, exponent in EXPONENTS.items():
        if architecture.startswith(family):
            scale = (REFERENCE_HIDDEN_SIZE / hidden_size) ** exponent
            return BASE_RATE * LORA_FACTOR * scale
    raise TinsmithError(
        f"learning_rate: auto is known for the architectures {' and '.join(EXPONENTS)}, got"
        f" {architecture!r}: set learning_rate to a number, for LoRA about ten times what full"
        " fine-tuning of this model would use"
    )


def batch_size_factor(batch_size: int, reference_batch_size: int | None) -> float:
    """sqrt(batch_size / reference), which keeps the noise of Adam's steps; 1 without a reference.

    Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms".
    """
    if reference_batch_size is None:
        return 1.0
    return math.sqrt(batch_size / reference_batch_size)


def resolve_learning_rate(stage: config.OwnStage, model_dir: Path) -> float:
    """The learning rate that a stage trains with; its batch is what one optimizer step sees."""
    if stage.learning_rate != "auto":
        return stage.learning_rate
    model = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    model = model.get("text_config", model)
    rate = lora_learning_rate(str(model.get("model_type")), int(model["hidden_size"]))
    return rate * batch_size_factor(_batch_size(stage), stage.reference_batch_size)


def _batch_size(stage: config.OwnStage) -> int:
    if stage.kind == "supervised":
        return stage.batch_size
    return stage.problems_per_step * stage.samples_per_problem
