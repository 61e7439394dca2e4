"""A replica in float32 on the CPU computes in few operations what transformers computes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tests.batches import Client, finish, request
from tests.families import llama, mistral, qwen2, qwen2_moe, qwen3_gelu
from tinsmith.backend.compiled import threads
from tinsmith.backend.model.base_model import BaseModel, decoder_layers
from tinsmith.backend.sampling import fused_layer, keys_values, packed
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.decode_steps import Recording
from tinsmith.backend.sampling.fused_layer import FusedLayer
from tinsmith.backend.sampling.replica import make_replica

TOLERANCE = 2e-5  # nats, of some 4 to 10


@pytest.fixture(autouse=True)
def packing_is_chosen_anew() -> Iterator[None]:
    packed._packing.cache_clear()
    yield
    packed._packing.cache_clear()


@pytest.mark.parametrize("is_libgomp", [True, False])
@pytest.mark.parametrize("make", [llama, mistral, qwen2, qwen3_gelu])
def test_log_probabilities_of_fused_layers_are_those_of_plain_transformers_in_float64(
    make: Callable[[], PreTrainedModel], is_libgomp: bool, monkeypatch: pytest.MonkeyPatch
):
    """Where PyTorch's OpenMP library is another one, its own functions are used."""
    if not is_libgomp:
        for place in (fused_layer, keys_values, packed, threads):
            monkeypatch.setattr(place, "openmp", lambda: None)
    layers = decoder_layers(sampled_as_in_float64(make))
    assert layers is not None
    assert all(isinstance(layer, FusedLayer) for layer in layers)


def test_a_window_that_a_family_has_in_its_masks_alone_is_kept_to_in_sampling():
    """Qwen2-MoE tells attention of none."""
    sampled_as_in_float64(qwen2_moe)


def sampled_as_in_float64(
    make: Callable[[], PreTrainedModel], recording: Recording | None = None
) -> PreTrainedModel:
    """A replica, whose samples' log-probabilities are those of plain transformers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().eval().requires_grad_(False)
        for name, parameter in module.named_parameters():  # else norms are 1 and biases 0
            if "norm" in name or "bias" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    base = BaseModel("random", "", module, _NoTokenizer(), 256, (0,))
    replica = make_replica(base, None)
    asked = [request(list(range(size)), 20, seed=size, num_samples=3) for size in (3, 40)]
    clients = [Client(one) for one in asked]
    batch = SamplingBatch(base, replica, 8192, 10**6, recording=recording)
    for client in clients:
        batch.add(client.job)
    finish(batch)
    exact = make().double().eval()
    exact.load_state_dict(module.state_dict())
    for client in clients:
        prompt = client.job.request.prompt
        for completion in client.completions:
            tokens = torch.tensor([[*prompt, *completion.tokens]])
            with torch.no_grad():
                logprobs = exact(tokens).logits[0].log_softmax(-1)
            chosen = logprobs[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :, None])[:, 0]
            found = torch.tensor(completion.logprobs, dtype=torch.float64)
            assert torch.allclose(found, chosen, rtol=0, atol=TOLERANCE)
    return replica


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")
def test_products_that_would_depend_on_the_number_of_rows_are_not_left_to_mkl(
    monkeypatch: pytest.MonkeyPatch,
):
    error = 0.0

    class Rows:
        """Each row by itself, but for an error that grows with their number."""

        _mkl_reorder_linear_weight = torch.ops.mkl._mkl_reorder_linear_weight

        @staticmethod
        def _mkl_linear(x: torch.Tensor, *others: Any) -> torch.Tensor:
            _, weight, bias, _ = others
            rows = torch.stack([F.linear(row, weight, bias) for row in x])
            return rows * (1 + error * len(x))

    monkeypatch.setattr(torch.ops, "mkl", Rows)
    assert packed._packing(500, 64) == "mkl"
    error = 1e-7
    packed._packing.cache_clear()
    assert packed._packing(500, 64) == "onednn"


class _NoTokenizer:
    decode = staticmethod(lambda tokens: str(tokens))
