"""Adapters merged into the weights that they adapt while a request is trained on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from transformers import PreTrainedModel

from tinsmith.backend.model.activations import is_out_of_memory
from tinsmith.backend.model.fused_lora import FusedLoraLinear
from tinsmith.backend.model.products import suits_onednn
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


def merged_bytes(module: PreTrainedModel, has_backward: bool) -> int:
    """What `merged_adapters` takes at most: a product's weights exist once more until they are
    packed."""
    products = [product for layer in _adapted(module) for product in layer.products()]
    kept = sum(product.merged_bytes(has_backward) for product in products)
    passing = (product.weight.nbytes for product in products if suits_onednn(product.weight))
    return kept + max(passing, default=0)


@contextmanager
def merged_adapters(module: PreTrainedModel, has_backward: bool) -> Iterator[None]:
    """Within the block the adapted layers compute by W + s B A of the adapters as they are now."""
    layers = _adapted(module)
    try:
        for layer in layers:
            layer.merge_adapters(has_backward)
        yield
    finally:
        for layer in layers:
            layer.unmerge_adapters()


def enter_merged(module: PreTrainedModel, has_backward: bool, stack: ExitStack) -> bool:
    """Enter `merged_adapters` on the stack; false where memory does not hold them."""
    try:
        stack.enter_context(merged_adapters(module, has_backward))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _adapted(module: PreTrainedModel) -> list[TrainingLayer | FusedLoraLinear]:
    by_hand = [layer for layer in module.modules() if isinstance(layer, TrainingLayer)]
    inside = {id(part) for layer in by_hand for part in layer.modules()}
    alone = (layer for layer in module.modules() if isinstance(layer, FusedLoraLinear))
    return [*by_hand, *(layer for layer in alone if id(layer) not in inside)]
