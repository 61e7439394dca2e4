"""A model that does not fit is refused before it is read, with what would hold it."""

import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.unit.test_shared_prompts import in_dtype
from tinsmith.backend.model.activations import SHARE, tokens_within
from tinsmith.backend.model.adapter import LoraSettings, attach_adapter, lora_pairs
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.capacity import (
    BYTES_PER_WEIGHT,
    GIB,
    NUM_TOKENS,
    RANK,
    footprint,
    should_shard,
)
from tinsmith.backend.ranks.launch import running_ranks
from tinsmith.errors import TinsmithError

CUDA = torch.device("cuda")
# As published with Llama 3.1 8B.
NUM_PARAMETERS = 8_030_261_248
SIZES = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All that is looked at of a download of this model."""
    folder = tmp_path_factory.mktemp("llama-8b")
    LlamaConfig(**SIZES).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    return {"llama-8b": str(folder)}


def decide(models: dict[str, str], gib: float, num_gpus: int, wish: object = "auto") -> bool:
    """For GPUs with so much free memory."""
    return should_shard(models, CUDA, torch.bfloat16, num_gpus, wish, lambda _: int(gib * GIB))


def test_the_weights_counted_are_those_that_are_loaded(base: BaseModel) -> None:
    found = footprint(base.name, base.source, torch.float32, "cpu")
    assert found.weights == sum(tensor.nbytes for tensor in base.module.parameters())
    half = footprint(base.name, base.source, torch.bfloat16, "cpu")
    assert half.weights == found.weights // 2


def test_the_weights_of_a_large_model_are_counted_without_reading_them(
    llama_8b: dict[str, str],
) -> None:
    ((name, source),) = llama_8b.items()
    found = footprint(name, source, torch.bfloat16, "cuda")
    assert found.weights == 2 * NUM_PARAMETERS
    assert found.rest == 2 * (2 * 128256 * 4096 + 4096)
    assert found.layer == found.layers // 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_just_fits_is_left_the_activations_that_it_was_found_to_need(
    base: BaseModel, dtype: torch.dtype
) -> None:
    """What decides on GPUs and what later bounds a micro-batch have one notion of what is free."""
    size = footprint(base.name, base.source, dtype, "cpu")
    models = {base.name: base.source}
    enough = size.on_each(1)
    assert not should_shard(models, torch.device("cpu"), dtype, 1, "auto", lambda _: enough)
    with pytest.raises(TinsmithError, match="too large"):
        should_shard(models, torch.device("cpu"), dtype, 1, "auto", lambda _: enough - 1)
    with in_dtype(base, dtype):
        module = attach_adapter(base, LoraSettings(rank=RANK, alpha=32.0), seed=0)
        granted = (enough - size.weights) // SHARE
        adapter = BYTES_PER_WEIGHT * sum(p.numel() for _, *two in lora_pairs(module) for p in two)
        assert tokens_within(module, granted) >= NUM_TOKENS
        assert granted + adapter <= enough - size.weights


def test_a_model_is_sharded_where_one_gpu_cannot_hold_it(llama_8b: dict[str, str]) -> None:
    assert [decide(llama_8b, 80, num_gpus) for num_gpus in (1, 2)] == [False, False]
    assert decide(llama_8b, 16, 4)
    assert decide(llama_8b, 80, 2, True)
    assert not decide(llama_8b, 80, 2, False)


def test_a_model_too_large_says_how_many_gpus_would_hold_it(llama_8b: dict[str, str]) -> None:
    for num_gpus, wish in ((1, "auto"), (2, "auto"), (4, False)):
        with pytest.raises(
            TinsmithError, match=r"--model llama-8b: too large: .* are free"
        ) as told:
            decide(llama_8b, 10, num_gpus, wish)
        assert "weights in bfloat16: 15.0 GiB in all" in str(told.value)
        found = re.search(r"num_gpus: (\d+) with shard_base_model: auto would", str(told.value))
        assert found is not None
        enough = int(found[1])
        assert enough > 2
        assert decide(llama_8b, 10, enough)
        with pytest.raises(TinsmithError, match="too large"):
            decide(llama_8b, 10, enough - 1)


def test_embeddings_that_no_gpu_could_hold_are_no_matter_of_their_number(
    llama_8b: dict[str, str],
) -> None:
    with pytest.raises(TinsmithError, match="no number of GPUs with so little free memory"):
        decide(llama_8b, 1, 8)


def test_models_that_are_served_together_need_their_weights_together(
    llama_8b: dict[str, str],
) -> None:
    twice = llama_8b | {"again": llama_8b["llama-8b"]}
    assert not decide(llama_8b, 30, 1)
    with pytest.raises(TinsmithError, match="--model llama-8b, again: too large"):
        decide(twice, 30, 1)


def test_on_a_cpu_more_memory_is_asked_for_and_no_gpus(qwen3_dir: Path) -> None:
    models = {"qwen3": str(qwen3_dir)}
    with (
        pytest.raises(TinsmithError, match=r"on cpu .* a machine with more memory") as told,
        running_ranks(models, "cpu", "float32", 1, 1, free_bytes=lambda _: 1000),
    ):
        pass
    assert "num_gpus" not in str(told.value)


def test_one_gpu_has_nobody_to_share_a_model_with(llama_8b: dict[str, str]) -> None:
    with pytest.raises(TinsmithError, match=r"--shard-base-model true needs .*--num-gpus to 2"):
        decide(llama_8b, 80, 1, True)
