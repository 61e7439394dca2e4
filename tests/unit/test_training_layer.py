"""The trainer's layers and attention by hand compute what plain transformers computes."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tests.families import SIZES, llama, mistral, qwen2, qwen2_moe, qwen3, qwen3_gelu
from tests.packed import packed_states
from tinsmith.backend.compiled import passes
from tinsmith.backend.compiled.threads import openmp
from tinsmith.backend.model.adapter import LoraSettings, attach_adapter, lora_pairs
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.check import check_model
from tinsmith.backend.model.families import sliding_window
from tinsmith.backend.model.merged import merged_adapters
from tinsmith.backend.model.packed_attention import Part, attend_parts
from tinsmith.backend.model.passes import Plain, passes_for
from tinsmith.backend.model.training_layer import TrainingLayer

SCALING = 4.0 / 3
# Relative to the norm of each, of hidden states and of every gradient.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def with_random_vectors(model: PreTrainedModel) -> PreTrainedModel:
    """Biases and norms, which transformers starts with zeros and ones, drawn as well."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def some_rows() -> list[list[int]]:
    """Two that share a prompt, one that is short, and two that are long enough for blocks."""

    def draw(size: int) -> list[int]:
        return torch.randint(0, SIZES["vocab_size"], (size,)).tolist()

    prompt = draw(40)
    return [prompt + draw(9), prompt + draw(14), draw(30), prompt + draw(200), draw(210)]


def with_exact_norms(model: PreTrainedModel) -> PreTrainedModel:
    """transformers computes norms in float32 whatever the model is; PyTorch does as it is told."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer).__name__.endswith("RMSNorm"):
                known: Any = layer
                exact = torch.nn.RMSNorm(len(known.weight), known.variance_epsilon)
                exact.weight = known.weight
                setattr(parent, name, exact)
    return model


def references(
    model: PreTrainedModel,
    pairs: dict[str, tuple[Tensor, Tensor]],
    rows: Sequence[list[int]],
) -> list[Tensor]:
    """Last hidden states of each row alone in float64, with W + s B A for every adapted W."""
    whole = with_exact_norms(copy.deepcopy(model).double())
    weights = dict(whole.named_parameters())
    merged = {
        f"{name}.weight": weights[f"{name}.weight"].detach() + SCALING * b @ a
        for name, (a, b) in pairs.items()
    }
    prefix = whole.base_model_prefix + "."
    own = {name.removeprefix(prefix): weight for name, weight in merged.items()}
    return [
        torch.func.functional_call(backbone(whole), own, kwargs={"input_ids": torch.tensor([row])})
        .last_hidden_state[0]
        for row in rows
    ]  # fmt: skip


@pytest.mark.parametrize("is_merged", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("make", [llama, mistral, qwen2, qwen3])
def test_states_and_gradients_are_those_of_plain_transformers_in_float64(
    make: Callable[[], PreTrainedModel], dtype: torch.dtype, is_merged: bool
):
    torch.manual_seed(0)
    model = with_random_vectors(make()).requires_grad_(False).eval()
    torch.nn.Module.to(model, dtype)
    base = BaseModel("tiny", "", model, None, 512, ())
    module = attach_adapter(base, LoraSettings(3, 4.0, train_unembed=False), seed=1)
    assert any(isinstance(layer, TrainingLayer) for layer in module.modules())
    pairs = {}
    for name, a, b in lora_pairs(module):
        a.data = a.data.to(dtype)
        b.data = 0.2 * torch.randn(b.shape, dtype=dtype)
        pairs[name] = tuple(side.detach().double().requires_grad_() for side in (a, b))
    rows = some_rows()
    expected = references(model, pairs, rows)
    with merged_adapters(module, has_backward=True) if is_merged else nullcontext():
        mine = packed_states(module, rows)
        directions = [torch.randn(state.shape, dtype=torch.float64) for state in expected]
        for states in (expected, mine):
            torch.cat(
                [(one * d).sum()[None] for one, d in zip(states, directions, strict=True)]
            ).sum().backward()
    for one, other in zip(mine, expected, strict=True):
        assert_near(one, other, dtype)
    with torch.no_grad():
        padded = torch.tensor([[*rows[0], 0, 0, 0, 0, 0], rows[1]])
        states = backbone(module)(input_ids=padded, use_cache=False).last_hidden_state
    for one, other in zip(states, expected, strict=False):
        assert_near(one[: len(other)], other, dtype)
    for name, a, b in lora_pairs(module):
        for own, reference in zip((a, b), pairs[name], strict=True):
            assert_near(own.grad, reference.grad, dtype)


def assert_near(one: Tensor | None, other: Tensor | None, dtype: torch.dtype) -> None:
    assert one is not None
    assert other is not None
    assert (one.double() - other).norm() <= TOLERANCE[dtype] * other.norm()


@pytest.mark.skipif(openmp() is None, reason="this PyTorch's OpenMP library is not libgomp")
def test_passes_are_compiled_in_float32_alone():
    assert passes_for(torch.ones(1)) is passes
    assert passes_for(torch.ones(1, dtype=torch.float64)) is Plain


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_to_parts_is_that_to_each_sequence_alone(dtype: torch.dtype, window: int | None):
    """Short and long parts, alone and behind a prompt that two share; also in 16 bits, where
    PyTorch's attention computes all of them."""
    torch.manual_seed(1)
    sizes = {"prompt": 50, "short": 20, "long": 200, "alone": 70}
    starts = dict(zip(sizes, [0, 50, 70, 270], strict=True))
    own = {name: slice(starts[name], starts[name] + size) for name, size in sizes.items()}
    none, prompt = slice(0, 0), own["prompt"]
    parts = [Part(own["prompt"], none), Part(own["short"], prompt), Part(own["long"], prompt),
             Part(own["alone"], none)]  # fmt: skip
    tensors = [torch.randn(340, heads, 16, dtype=torch.float64) for heads in (6, 2, 2)]
    direction = torch.randn(340, 6, 16, dtype=torch.float64)
    mine = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    truth = [tensor.detach().double().requires_grad_() for tensor in mine]
    query, key, value = mine
    found = attend_parts(query, key, value, parts, 0.3, window)
    (found.double() * direction).sum().backward()
    for part in parts:
        keys, values = (torch.cat([t[part.prompt], t[part.own]]) for t in truth[1:])
        expected = by_formula(truth[0][part.own], keys, values, 0.3, window)
        tolerance = {torch.bfloat16: 1e-2}.get(dtype) or TOLERANCE[dtype]
        assert (found[part.own].double() - expected).norm() <= tolerance * expected.norm()
        (expected * direction[part.own]).sum().backward()
    for one, other in zip(mine, truth, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad.double() - other.grad).norm() <= tolerance * other.grad.norm()


def by_formula(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
) -> Tensor:
    """softmax(s q k^T) v, where the last of the keys are those of the queries."""
    at = torch.arange(len(key))
    distance = at[len(key) - len(query) :, None] - at
    may_see = (distance >= 0) & (distance < (window or len(key)))
    key, value = (tensor.repeat_interleave(3, 1) for tensor in (key, value))
    scores = scaling * torch.einsum("thk,shk->hts", query, key)
    weights = F.softmax(scores.masked_fill(~may_see, -torch.inf), -1)
    return torch.einsum("hts,shk->thk", weights, value)


def test_adapters_of_one_base_share_the_weights_that_lie_side_by_side(base: BaseModel):
    before = {name: tensor.clone() for name, tensor in base.module.state_dict().items()}
    one, two = (attach_adapter(base, LoraSettings(4, 32.0), seed) for seed in (0, 1))
    for name in ("qkv", "gate_up", "output", "down"):
        weights = [getattr(backbone(module).get_submodule("layers.0"), name).weight
                   for module in (one, two)]  # fmt: skip
        assert weights[0].data_ptr() == weights[1].data_ptr(), name
    layer: Any = backbone(base.module).get_submodule("layers.0")
    assert weights[0].data_ptr() == layer.mlp.down_proj.weight.data_ptr()
    gate_up: Any = backbone(one).get_submodule("layers.0.mlp")
    shared = gate_up.gate_proj.base_layer.weight.untyped_storage()
    assert shared.data_ptr() == gate_up.up_proj.base_layer.weight.untyped_storage().data_ptr()
    after = base.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_layers_of_another_activation_are_computed_by_transformers():
    torch.manual_seed(0)
    model = qwen3_gelu().requires_grad_(False).eval()
    base = BaseModel("tiny", "", model, None, 512, ())
    module = attach_adapter(base, LoraSettings(3, 4.0), seed=1)
    assert not any(isinstance(layer, TrainingLayer) for layer in module.modules())
    row = list(range(30))
    expected = backbone(model)(input_ids=torch.tensor([row])).last_hidden_state[0]
    assert torch.allclose(packed_states(module, [row])[0], expected, rtol=0, atol=1e-5)


def test_a_window_that_a_family_has_in_its_masks_alone_is_kept_to():
    """Qwen2-MoE tells attention of none."""
    torch.manual_seed(0)
    model = qwen2_moe().requires_grad_(False).eval()
    base = BaseModel("tiny", "", model, None, 512, ())
    module = attach_adapter(base, LoraSettings(3, 4.0, train_mlp=False), seed=1)
    row = torch.randint(0, SIZES["vocab_size"], (60,)).tolist()
    expected = backbone(model)(input_ids=torch.tensor([row])).last_hidden_state[0]
    assert torch.allclose(packed_states(module, [row])[0], expected, rtol=0, atol=1e-5)


def test_a_window_that_a_family_knows_nothing_of_is_none():
    layer: Any = backbone(llama(sliding_window=5)).get_submodule("layers.0")
    assert layer.self_attn.config.sliding_window == 5
    assert sliding_window(layer.self_attn) is None


def test_a_model_that_was_looked_at_can_be_trained_by_autograd(base: BaseModel):
    """The look, which computes nothing but forward passes, leaves no tensors of inference."""
    check_model(base)
    assert not any(parameter.is_inference() for parameter in base.module.parameters())
    module = attach_adapter(base, LoraSettings(4, 32.0), seed=0)
    torch.cat(packed_states(module, [list(range(20))] * 2)).sum().backward()
    assert all(b.grad is not None for name, _, b in lora_pairs(module) if "lm_head" not in name)
