"""Does an engine sample from what is trained? The likeliest tokens after a prompt say."""

from collections.abc import Sequence

import numpy as np
import torch

from tinsmith.backend.model.adapter import (
    AdapterWeights,
    attach_adapter,
    set_adapter_weights,
)
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.forward import token_logprobs
from tinsmith.backend.sampling.request import SamplingRequest
from tinsmith.errors import TinsmithError

NUM_TOKENS = 16  # of the prompt
TOP_K = 16
# In float32 of any token; in 16 bits, where rounding differs from kernel to kernel, of the mean.
MAX_GAP = 1e-3
MAX_MEAN_GAP = 0.05


def probe_request(base: BaseModel) -> SamplingRequest:
    """A prompt of tokens from all over the vocabulary, and what it asks for: the log-probabilities
    of the likeliest tokens after it, with which vLLM draws."""
    length = min(NUM_TOKENS, base.context_length)
    prompt = np.random.default_rng(0).integers(0, base.vocabulary_size, length).tolist()
    return SamplingRequest(
        prompt=tuple(prompt),
        num_samples=1,
        max_tokens=1,
        temperature=1.0,
        top_k=-1,
        top_p=1.0,
        seed=0,
        stop_token_ids=frozenset(),
        topk_sample_logprobs=min(TOP_K, base.vocabulary_size),
    )


@torch.inference_mode()
def expected_logprobs(
    base: BaseModel, weights: AdapterWeights | None, tokens: Sequence[int]
) -> np.ndarray:
    """Log-probabilities [T, V] of what follows each of the tokens, as the trainer has them."""
    module = base.module
    if weights is not None:
        module = attach_adapter(base, weights.settings, seed=0)
        set_adapter_weights(module, weights)
    ids_1T = torch.tensor([list(tokens)], device=base.device)
    hidden_TD = backbone(module)(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
    ids_TV = torch.arange(base.vocabulary_size, device=base.device).expand(len(tokens), -1)
    return token_logprobs(module, hidden_TD, ids_TV).cpu().numpy()


def check_probe(found: np.ndarray, expected: np.ndarray, dtype: torch.dtype) -> None:
    """Refuse weights that give tokens other log-probabilities than the trainer's."""
    gaps = np.abs(found - expected)
    is_exact = dtype == torch.float32
    gap, limit = (gaps.max(), MAX_GAP) if is_exact else (gaps.mean(), MAX_MEAN_GAP)
    kind = "at most" if is_exact else "on average"
    if not gap <= limit:  # a NaN is no agreement
        raise TinsmithError(
            "vLLM does not sample from the weights that it was given: the log-probabilities of a "
            f"probe differ from the trainer's by {gap:.3g} {kind}, allowed: {limit}; "
            "start the server with --sampler transformers"
        )
