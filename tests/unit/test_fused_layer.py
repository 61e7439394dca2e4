"""A replica in float32 on the CPU computes in few operations what transformers computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.batches import Client, finish, request
from tinsmith.backend.model.base_model import BaseModel, decoder_layers
from tinsmith.backend.sampling import packed
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.fused_layer import FusedLayer
from tinsmith.backend.sampling.replica import make_replica

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "initializer_range": 0.2, "max_position_embeddings": 256,
}  # fmt: skip
WINDOW: dict[str, Any] = {"sliding_window": 5}
TOLERANCE = 2e-5  # nats, of some 4 to 10


def llama() -> PreTrainedModel:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    config = LlamaConfig(attention_bias=True, mlp_bias=True, rope_parameters=rope, **SIZES)
    return LlamaForCausalLM(config)


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, **WINDOW))


def qwen2() -> PreTrainedModel:
    layers = ["full_attention", "sliding_attention", "full_attention"]
    return Qwen2ForCausalLM(
        Qwen2Config(use_sliding_window=True, layer_types=layers, **SIZES, **WINDOW)
    )


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(hidden_act="gelu", **SIZES))


def qwen2_moe() -> PreTrainedModel:
    sizes: dict[str, Any] = SIZES | WINDOW
    sizes |= {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 40, "num_experts": 4}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(use_sliding_window=True, **sizes))
    model.set_experts_implementation("eager")  # the other ones know no float64
    return model


@pytest.mark.parametrize("make", [llama, mistral, qwen2, qwen3])
def test_log_probabilities_of_fused_layers_are_those_of_plain_transformers_in_float64(
    make: Callable[[], PreTrainedModel],
):
    layers = decoder_layers(sampled_as_in_float64(make))
    assert layers is not None
    assert all(isinstance(layer, FusedLayer) for layer in layers)


def test_a_window_that_a_family_has_in_its_masks_alone_is_kept_to_in_sampling():
    """Qwen2-MoE tells attention of none."""
    sampled_as_in_float64(qwen2_moe)


def sampled_as_in_float64(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A replica, whose samples' log-probabilities are those of plain transformers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().eval().requires_grad_(False)
        for name, parameter in module.named_parameters():  # else norms are 1 and biases 0
            if "norm" in name or "bias" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    base = BaseModel("random", "", module, _NoTokenizer(), 256, (0,))
    replica = make_replica(base, None)
    clients = [Client(request(list(range(size)), 20, seed=size)) for size in (3, 40)]
    batch = SamplingBatch(base, replica, 8192, 10**6)
    for client in clients:
        batch.add(client.job)
    finish(batch)
    exact = make().double().eval()
    exact.load_state_dict(module.state_dict())
    for client in clients:
        [completion] = client.completions
        prompt = client.job.request.prompt
        tokens = torch.tensor([[*prompt, *completion.tokens]])
        with torch.no_grad():
            logprobs = exact(tokens).logits[0].log_softmax(-1)
        chosen = logprobs[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :, None])[:, 0]
        assert torch.allclose(
            torch.tensor(completion.logprobs, dtype=torch.float64), chosen, rtol=0, atol=TOLERANCE
        )
    return replica


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")
def test_products_that_would_depend_on_the_number_of_rows_are_not_left_to_mkl(
    monkeypatch: pytest.MonkeyPatch,
):
    assert packed._packing(500, 64) == "mkl"
    assert packed._packing(24, 16) == "onednn"  # of few inputs a single row is summed otherwise
    real = torch.ops.mkl._mkl_linear

    class Altered:
        _mkl_reorder_linear_weight = torch.ops.mkl._mkl_reorder_linear_weight

        @staticmethod
        def _mkl_linear(x: torch.Tensor, *others: object) -> torch.Tensor:
            return real(x, *others) * (1 + 1e-7 * len(x))

    packed._packing.cache_clear()
    monkeypatch.setattr(torch.ops, "mkl", Altered)
    assert packed._packing(500, 64) == "onednn"
    packed._packing.cache_clear()


class _NoTokenizer:
    decode = staticmethod(lambda tokens: str(tokens))
