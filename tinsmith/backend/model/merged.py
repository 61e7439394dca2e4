"""Adapters merged into the weights that they adapt while a request is trained on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from tinsmith.backend.model.activations import is_out_of_memory
from tinsmith.backend.model.fused_lora import FusedLoraLinear
from tinsmith.backend.model.training_layer import TrainingLayer

# Of its width, from which on a model's request takes less time with merged weights: making them
# costs as much as so many tokens save.
MIN_TOKENS = 2


def can_merge(module: PreTrainedModel) -> bool:
    """Whether W + s B A differs from the two products by rounding alone, which in 16 bits could be
    all of a small update, and whether narrow products cost more than their arithmetic, as on a CPU.
    """
    return module.device.type == "cpu" and module.dtype.itemsize >= torch.float32.itemsize


def pays_to_merge(module: PreTrainedModel, num_tokens: int) -> bool:
    """Whether a request of so many tokens takes less time with merged weights."""
    return num_tokens >= MIN_TOKENS * module.config.get_text_config().hidden_size


def merged_bytes(module: PreTrainedModel) -> int:
    """What `merged_adapters` takes."""
    adapted = (layer for layer in module.modules() if isinstance(layer, LoraLayer))
    weights = (layer.get_base_layer().weight for layer in adapted)
    return sum(weight.nbytes for weight in weights if isinstance(weight, torch.Tensor))


@contextmanager
def merged_adapters(module: PreTrainedModel) -> Iterator[None]:
    """Within the block the adapted layers compute by W + s B A of the adapters as they are now."""
    by_hand = [layer for layer in module.modules() if isinstance(layer, TrainingLayer)]
    inside = {id(part) for layer in by_hand for part in layer.modules()}
    alone = (layer for layer in module.modules() if isinstance(layer, FusedLoraLinear))
    layers = [*by_hand, *(layer for layer in alone if id(layer) not in inside)]
    try:
        for layer in layers:
            layer.merge_adapters()
        yield
    finally:
        for layer in layers:
            layer.unmerge_adapters()


def enter_merged(module: PreTrainedModel, stack: ExitStack) -> bool:
    """Enter `merged_adapters` on the stack; false where memory does not hold them."""
    try:
        stack.enter_context(merged_adapters(module))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
