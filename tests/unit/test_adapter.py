"""Where LoRA sits, how it starts, and that adapters share one base in memory."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.packed import packed_logits
from tests.reference import Reference
from tinsmith.backend.model.adapter import (
    AdapterWeights,
    LoraSettings,
    adapter_weights,
    attach_adapter,
    lora_pairs,
    set_adapter_weights,
)
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.packed_attention import use_packed_attention
from tinsmith.backend.model.training_layer import use_training_layers
from tinsmith.errors import TinsmithError

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("attn", [True, False])
@pytest.mark.parametrize("mlp", [True, False])
@pytest.mark.parametrize("unembed", [True, False])
def test_lora_sits_on_all_linear_layers_that_the_flags_select(
    base: BaseModel, attn: bool, mlp: bool, unembed: bool
):
    flags = {"train_attn": attn, "train_mlp": mlp, "train_unembed": unembed}
    if not any(flags.values()):
        with pytest.raises(TinsmithError, match="nothing to train"):
            LoraSettings(4, 32.0, **flags)
        return
    module = attach_adapter(base, LoraSettings(4, 32.0, **flags), seed=0)
    names = [name for name, _, _ in lora_pairs(module)]
    expected = [
        *[f"model.layers.{i}.self_attn.{n}" for i in (0, 1) for n in ATTENTION if attn],
        *[f"model.layers.{i}.mlp.{n}" for i in (0, 1) for n in MLP if mlp],
        *["lm_head" for _ in range(1) if unembed],
    ]
    assert sorted(names) == sorted(expected)


def test_a_is_uniform_within_its_bound_and_b_is_zero(base: BaseModel):
    module = attach_adapter(base, LoraSettings(64, 32.0), seed=0)
    for _, a, b in lora_pairs(module):
        bound = 1 / math.sqrt(a.shape[1])
        assert a.abs().max() <= bound
        # Of a uniform on (-c, c): mean 0, standard deviation c / sqrt 3, each within 5 sigma.
        assert abs(a.mean()) < 5 * bound / math.sqrt(3 * a.numel())
        assert float(a.detach().std()) == pytest.approx(
            bound / math.sqrt(3), rel=5 / math.sqrt(a.numel())
        )
        assert a.abs().max() > 0.98 * bound
        assert not b.any()
        assert a.dtype == b.dtype == torch.float32
        assert a.requires_grad
        assert b.requires_grad


def test_the_seed_decides_a(base: BaseModel):
    def start(seed: int) -> list[torch.Tensor]:
        return [a for _, a, _ in lora_pairs(attach_adapter(base, LoraSettings(8, 32.0), seed))]

    assert all(torch.equal(one, two) for one, two in zip(start(5), start(5), strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(start(5), start(6), strict=True))


def test_a_fresh_adapter_computes_what_the_base_computes(base: BaseModel):
    """Bit for bit, by the trainer's layers; that they compute what transformers' do is shown in
    test_training_layer.py."""
    module = attach_adapter(base, LoraSettings(8, 32.0), seed=0)
    plain = base.module_tree()
    use_packed_attention(plain)
    use_training_layers(base, plain)
    ids = list(range(40))
    with torch.no_grad():
        assert torch.equal(packed_logits(module, ids), packed_logits(plain, ids))


def test_adapters_of_several_ranks_share_the_tensors_of_one_base(base: BaseModel):
    shared = {p.data_ptr() for p in base.module.parameters()}
    for rank in (1, 8, 32):
        module = attach_adapter(base, LoraSettings(rank, 32.0), seed=rank)
        frozen = [p for p in module.parameters() if not p.requires_grad]
        assert {p.data_ptr() for p in frozen} == shared
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert trained == sum(a.numel() + b.numel() for _, a, b in lora_pairs(module))
    assert not any(p.requires_grad for p in base.module.parameters())


def test_the_base_keeps_its_modules_when_an_adapter_is_attached(base: BaseModel):
    before = [type(m) for m in base.module.modules()]
    attach_adapter(base, LoraSettings(8, 32.0), seed=0)
    assert [type(m) for m in base.module.modules()] == before


def test_a_copy_of_the_weights_does_not_change_with_training(base: BaseModel):
    settings = LoraSettings(4, 32.0)
    module = attach_adapter(base, settings, seed=0)
    copy = adapter_weights(module, settings)
    for _, a, b in lora_pairs(module):
        a.data.add_(1.0)
        b.data.add_(1.0)
    assert all(a.abs().max() < 1 and not b.any() for a, b in copy.pairs.values())


def test_weights_come_back_from_the_disk_bit_by_bit(base: BaseModel, tmp_path: Path):
    settings = LoraSettings(4, 16.0)
    module = attach_adapter(base, settings, seed=1)
    for _, _, b in lora_pairs(module):
        b.data.normal_(generator=torch.Generator().manual_seed(0))
    weights = adapter_weights(module, settings)
    weights.save(tmp_path, base.name)
    other = attach_adapter(base, settings, seed=2)
    set_adapter_weights(other, AdapterWeights.load(tmp_path, settings))
    for (name, a, b), (other_name, c, d) in zip(lora_pairs(module), lora_pairs(other), strict=True):
        assert name == other_name
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize("alpha", [32.0, 5.0])
def test_saved_weights_mean_the_same_to_plain_peft_and_to_the_formula(
    base: BaseModel, tmp_path: Path, alpha: float
):
    settings = LoraSettings(4, alpha)
    module = attach_adapter(base, settings, seed=1)
    for _, _, b in lora_pairs(module):
        b.data = 0.02 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    adapter_weights(module, settings).save(tmp_path, base.name)
    plain = AutoModelForCausalLM.from_pretrained(base.source, dtype=torch.float32)
    ids = list(range(30))
    with torch.no_grad():
        ours = packed_logits(module, ids)
        theirs = PeftModel.from_pretrained(plain, tmp_path)(input_ids=torch.tensor([ids])).logits[0]
    pairs = {name: (a.detach().double(), b.double()) for name, a, b in lora_pairs(module)}
    formula = Reference.load(Path(base.source)).logits(ids, pairs, alpha / 4).detach()
    for logits in (ours, theirs):
        difference = logits.double().log_softmax(-1) - formula.log_softmax(-1)
        assert difference.abs().max() < 1e-5


def test_weights_of_another_shape_are_refused(base: BaseModel):
    small, large = LoraSettings(2, 32.0), LoraSettings(4, 32.0)
    weights = adapter_weights(attach_adapter(base, small, seed=0), small)
    with pytest.raises(TinsmithError, match="does not fit this base model"):
        set_adapter_weights(attach_adapter(base, large, seed=0), weights)


@pytest.mark.parametrize("rank", [0, -1, 1025])
def test_an_impossible_rank_is_refused(rank: int):
    with pytest.raises(TinsmithError, match=f"rank must be 1 to 1024, got {rank}"):
        LoraSettings(rank, 32.0)
