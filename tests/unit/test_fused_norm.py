"""The norm written by hand is the formula, forwards and backwards, and training uses it."""

import pytest
import torch

from tinsmith.backend.model.adapter import LoraSettings, attach_adapter
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.fused_norm import FusedNorm

TOLERANCE = 2e-6  # of values and gradients up to some 5
EPSILON = 1e-2


@pytest.mark.parametrize("shape", [(3, 7, 48), (1, 2, 16), (5, 48)])
def test_norm_and_gradient_are_those_of_autograd_in_float64(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    weight, direction = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    weight = 1 + weight.flatten()[: shape[-1]]
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    y = weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    y.backward(direction)
    own = x.detach().float().requires_grad_()
    norm = FusedNorm(torch.nn.Parameter(weight.float(), requires_grad=False), EPSILON)
    mine = norm(own)
    mine.backward(direction.float())
    assert own.grad is not None
    assert x.grad is not None
    assert torch.allclose(mine.double(), y, rtol=0, atol=TOLERANCE)
    assert torch.allclose(own.grad.double(), x.grad, rtol=0, atol=TOLERANCE)


def test_training_on_a_cpu_in_float32_uses_it_with_the_very_weights_of_the_base(base: BaseModel):
    module = attach_adapter(base, LoraSettings(4, 32.0), 0)
    norms = [layer for layer in module.modules() if type(layer).__name__.endswith("Norm")]
    assert norms
    assert all(isinstance(norm, FusedNorm) for norm in norms)
    shared = {id(parameter) for parameter in base.module.parameters()}
    assert all(id(norm.weight) in shared for norm in norms)
