"""How much memory the activations of a micro-batch take, and computing them twice to hold fewer."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tinsmith.backend.compiled import attention
from tinsmith.backend.model import compiled_attention
from tinsmith.backend.model.adapter import lora_pairs
from tinsmith.backend.model.base_model import BaseModel, unembedding
from tinsmith.backend.model.forward import MAX_LOGITS
from tinsmith.backend.model.narrow_products import width_for
from tinsmith.backend.model.packed_attention import MAX_SCORED_KEYS
from tinsmith.backend.model.training_layer import TrainingLayer
from tinsmith.backend.sampling.memory import free_device_bytes, key_value_heads

# Of what is free once the models are loaded: the keys and values of completions take a quarter,
# and gradients, moments and snapshots the rest.
SHARE = 2
# How PyTorch says that memory is out where it raises a bare RuntimeError: CPU, driver, cuBLAS.
MESSAGES = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
LOGITS_COPIES = 3  # of one block, in float32: they, their gradient and what the softmax makes


def free_for_activations(base: BaseModel, num_sharers: int) -> int:
    """Bytes that activations may take where no setting says it, of memory that so many processes
    have between them."""
    return free_device_bytes(base.device) // num_sharers // SHARE


def bytes_to_leave(activations: int, lasting: int) -> int:
    """What has to be free once the models are loaded for `free_for_activations` to be so many bytes
    and for `lasting` ones to fit beside them."""
    return max(SHARE * activations, activations + lasting)


def peak_bytes(
    module: PreTrainedModel,
    num_tokens: int,
    *,
    recomputes: bool,
    num_repeated: int = 0,
    num_scores: int | None = None,
    ranks: int | None = None,
    device_type: str | None = None,
) -> int:
    """What forward and backward of a micro-batch of `num_tokens`, padding included, hold at most.

    For each token a layer keeps, for its backward, about 4 vectors of the model's width (two norms
    and what they give), 6 of the queries' (norm, rotation, keys and values by query head, result),
    2 of the keys', 4 of the gated layer's, and x A^T of each adapter; less where its backward is by
    hand (training_layer.py); and a vector of the width alone if the layer is computed again, and
    then everything for one layer at a time. In 16 bits the norms and every adapter keep copies of
    their inputs in float32 besides. Behind the layers stand one block of logits, three times, and
    in front the gradients of one gated layer.

    In attention to packed sequences a CPU keeps `num_scores` of each head (None: as many as so
    many tokens can have), or where it is compiled a number for each query, and has room for the
    keys of one sequence in each thread; other devices keep keys and values again for
    `num_repeated` tokens of prompts. Behind the layers the states of those tokens are repeated, as
    is their gradient.

    `ranks`, the sum of those of all adapters, and `device_type` are given for a module that has
    neither adapters nor a device yet.
    """
    device_type = device_type or module.device.type
    config = module.config.get_text_config()
    width, layers, size = config.hidden_size, config.num_hidden_layers, module.dtype.itemsize
    layer = _kept_by_layer(module, ranks, device_type)
    attended, beside = _kept_by_attention(module, num_tokens, num_repeated, num_scores, device_type)
    whole = num_tokens * layer + attended
    kept = num_tokens * layers * width + whole if recomputes else layers * whole
    inner = _inner_width(module)
    passing = num_tokens * ((4 if _is_by_hand(module) else 2) * inner + 4 * width) + beside
    passing += 2 * num_repeated * width
    logits = LOGITS_COPIES * min(num_tokens * _vocabulary_size(module), MAX_LOGITS[device_type])
    return int((kept + passing) * size + torch.float32.itemsize * logits)


def _kept_by_layer(module: PreTrainedModel, ranks: int | None, device_type: str) -> float:
    """Numbers that a layer keeps of a token, but for what attention does by itself."""
    config = module.config.get_text_config()
    width, inner = config.hidden_size, _inner_width(module)
    kv_heads, head_dim = key_value_heads(config)
    queries, keys = config.num_attention_heads * head_dim, kv_heads * head_dim
    if ranks is None:
        own = (a.shape[0] for _, a, _ in lora_pairs(module))
        ranks = sum(width_for(rank, device_type, module.dtype) for rank in own)
    of_adapters = ranks / config.num_hidden_layers
    if _is_by_hand(module):
        return 2 * width + 3 * queries + 3 * keys + 3 * inner + of_adapters
    if module.dtype.itemsize >= torch.float32.itemsize:
        return 4 * width + 6 * queries + 2 * keys + 4 * inner + of_adapters
    return 14 * width + 8 * queries + 2 * keys + 5 * inner + 2 * of_adapters


def _kept_by_attention(
    module: PreTrainedModel,
    num_tokens: int,
    num_repeated: int,
    num_scores: int | None,
    device_type: str,
) -> tuple[int, int]:
    """Numbers that attention keeps in a layer, and those that it has room for while it runs."""
    config = module.config.get_text_config()
    heads, (_, head_dim) = config.num_attention_heads, key_value_heads(config)
    if _is_by_hand(module) and compiled_attention.is_for(device_type, module.dtype, head_dim):
        return num_tokens * heads, attention.num_beside(num_tokens, head_dim)
    if device_type == "cpu" and module.dtype.itemsize >= torch.float32.itemsize:
        most = num_tokens * min(num_tokens, MAX_SCORED_KEYS)
        return heads * (most if num_scores is None else num_scores), 0
    return num_repeated * 2 * heads * head_dim, 0


def _inner_width(module: PreTrainedModel) -> int:
    config = module.config.get_text_config()
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def _is_by_hand(module: PreTrainedModel) -> bool:
    return any(isinstance(layer, TrainingLayer) for layer in module.modules())


def tokens_within(module: PreTrainedModel, memory_bytes: int) -> int:
    """The most tokens of a micro-batch that stay within `memory_bytes` if its layers are computed
    again; 1 where not even that does."""
    low, high = 1, 1 << 24
    while low < high:
        middle = (low + high + 1) // 2
        if peak_bytes(module, middle, recomputes=True) <= memory_bytes:
            low = middle
        else:
            high = middle - 1
    return low


@contextmanager
def recomputed_layers(module: PreTrainedModel) -> Iterator[None]:
    """Within the block each layer keeps its input alone and is computed again in the backward
    pass, with the same result: nothing in it is random (Chen et al. 2016, arXiv 1604.06174)."""
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = again  # pyright: ignore[reportAttributeAccessIssue] in place of the method
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _vocabulary_size(module: PreTrainedModel) -> int:
    return unembedding(module).weight.shape[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error of PyTorch says."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(error) for message in MESSAGES)
