"""What goes to a vLLM engine and how; what is refused before an engine has to."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinsmith.backend.model.adapter import AdapterWeights, LoraSettings
from tinsmith.backend.model.base_model import BaseModel, load_base_models
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.backend.sampling.request import EMPTY, SamplingRequest
from tinsmith.backend.sampling.snapshots import Snapshots
from tinsmith.backend.vllm_sampler import pool as pool_module
from tinsmith.backend.vllm_sampler.launch import choose_gpus, find_python, launch_of
from tinsmith.backend.vllm_sampler.messages import (
    completion_of,
    is_for_vllm,
    parts_of,
    prompt_scores_of,
    seed_of,
)
from tinsmith.backend.vllm_sampler.pool import VllmPool
from tinsmith.backend.vllm_sampler.probe import check_probe
from tinsmith.backend.vllm_sampler.residents import Residents
from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings

REQUEST = SamplingRequest((5, 6, 7), 1, 4, 1.0, -1, 1.0, 0, frozenset())


def settings(**changes: Any) -> ServerSettings:
    return ServerSettings(
        models={}, api_key="tml-x", sampler="vllm", vllm_python=sys.executable, **changes
    )


@pytest.fixture(scope="module")
def half(qwen3_dir: Path) -> BaseModel:
    """A model whose adapters stay beside it, as on a GPU."""
    return load_base_models({"m": str(qwen3_dir)}, "cpu", "bfloat16")["m"]


def pool_of(base: BaseModel, folder: Path) -> VllmPool:
    snapshots = Snapshots(folder / "s")
    return VllmPool({base.name: base}, settings(), snapshots, SamplerPool(snapshots, 256))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"max_tokens": 1}, True),
        ({"max_tokens": 1, "wants_prompt_logprobs": True}, False),
        ({"wants_prompt_logprobs": True}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.0, "top_k": 5}, False),
        ({"temperature": 0.0, "min_p": 0.1}, False),
        ({"temperature": 0.001}, False),
        ({"temperature": 2.5}, False),
        ({"top_k": 5, "top_p": 0.5, "min_p": 0.1}, True),
        ({"prompt_alt_tokens_k": 2}, True),
    ],
)
def test_what_vllm_would_answer_otherwise_stays_with_the_trainers_model(
    changes: dict[str, Any], expected: bool
):
    assert is_for_vllm(replace(REQUEST, **changes), merges=False) is expected


def test_prompts_are_scored_by_the_trainers_model_where_vllm_would_not_as_the_server_promises():
    """What vLLM draws does not depend on it."""
    plain = replace(REQUEST, topk_sample_logprobs=2)
    scores = {"wants_prompt_logprobs": True, "prompt_logprobs_last_n": 1, "topk_prompt_logprobs": 3}
    alternatives = {"prompt_alt_tokens_k": 2}
    local = replace(REQUEST, max_tokens=1)
    assert parts_of(plain, merges=False) is None
    assert parts_of(replace(plain, **scores), merges=True) is None
    assert parts_of(replace(plain, **scores), merges=False) == (replace(local, **scores), plain)
    both = replace(plain, **scores, **alternatives)
    assert parts_of(both, merges=True) == (
        replace(local, **alternatives),
        replace(plain, **scores),
    )
    assert parts_of(both, merges=False) == (replace(local, **scores, **alternatives), plain)


def test_seeds_of_samples_differ_between_samples_and_between_seeds():
    seeds = {seed_of(seed, sample) for seed in range(-50, 50) for sample in range(50)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_likeliest_tokens_come_in_order_with_empty_cells_for_those_cut_off():
    answer = {
        "tokens": [9],
        "logprobs": [-1.0],
        "reason": "stop",
        "top_ids": [[8, 4, 6]],
        "top_logprobs": [[-0.5, -0.5, -np.inf]],
    }
    top = completion_of(answer).top
    assert top is not None
    assert top.token_ids.tolist() == [[4, 8, 0]]
    assert top.logprobs.tolist() == [[-0.5, -0.5, EMPTY]]


def test_diverged_weights_are_refused():
    with pytest.raises(TinsmithError, match="diverged"):
        completion_of({"tokens": [9], "logprobs": [np.nan], "reason": "stop"})


def test_scores_of_the_end_of_a_prompt_leave_the_rest_empty():
    request = replace(REQUEST, wants_prompt_logprobs=True, prompt_logprobs_last_n=1)
    found = prompt_scores_of(request, {"prompt_logprobs": [-1.0, -2.0]}).logprobs
    assert found is not None
    assert np.isnan(found[:2]).all()
    assert found[2] == -2.0


@pytest.mark.parametrize(
    ("count", "trainers", "size", "expected"),
    [
        (1, [0], 1, ([0], True)),
        (2, [0], 1, ([1], False)),
        (2, [1], 1, ([0], False)),
        (4, [0, 1], 2, ([2, 3], False)),
        (4, [0], 4, ([0, 1, 2, 3], True)),
    ],
)
def test_an_engine_takes_gpus_that_the_trainer_leaves_if_it_can(
    count: int, trainers: list[int], size: int, expected: tuple[list[int], bool]
):
    assert choose_gpus(count, trainers, size) == expected


def test_more_gpus_than_there_are_and_more_than_one_cpu_are_refused(bases: dict[str, BaseModel]):
    with pytest.raises(TinsmithError, match="number of GPUs, 1, got 2"):
        choose_gpus(1, [0], 2)
    with pytest.raises(TinsmithError, match="must be 1 on a CPU, got 2"):
        launch_of(bases["qwen3"], settings(vllm_tensor_parallel_size=2))


def test_a_missing_environment_is_named_with_what_makes_it(tmp_path: Path):
    with pytest.raises(TinsmithError, match=r"there is no .*nowhere; run `make vllm-cpu`"):
        find_python("cpu", str(tmp_path / "nowhere"))
    with pytest.raises(TinsmithError, match=r"`make vllm-cuda`"):
        find_python("cuda", str(tmp_path / "nowhere"))


def test_adapters_are_merged_where_the_transformers_sampler_merges_them(
    bases: dict[str, BaseModel], half: BaseModel
):
    assert launch_of(bases["qwen3"], settings()).merges
    assert not launch_of(half, settings()).merges


def test_what_vllm_could_not_sample_from_is_refused_before_it_is_trained(
    half: BaseModel, bases: dict[str, BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pool = pool_of(half, tmp_path)
    pool.check_adapter(half, LoraSettings(512, 32.0))
    with pytest.raises(TinsmithError, match=r"rank must be at most 512 .* got 513"):
        pool.check_adapter(half, LoraSettings(513, 32.0))
    monkeypatch.setattr(pool_module, "MAX_LORA_VOCABULARY", half.vocabulary_size - 1)
    with pytest.raises(TinsmithError, match="pass train_unembed=False"):
        pool.check_adapter(half, LoraSettings(8, 32.0))
    pool.check_adapter(half, LoraSettings(8, 32.0, train_unembed=False))
    pool.check_adapter(bases["qwen3"], LoraSettings(1024, 32.0))  # merged: any will do


def weights() -> AdapterWeights:
    pair = torch.ones(1, 48), torch.ones(96, 1)
    return AdapterWeights(LoraSettings(1, 1.0), {"model.layers.0.mlp.up_proj": pair})


def install(residents: Residents, snapshot_id: str, base: BaseModel, in_use: set[str]) -> list[int]:
    dropped = residents.make_room(snapshot_id, in_use)
    assert dropped is not None
    residents.install(snapshot_id, base, weights())
    return dropped


def test_adapters_beyond_the_limit_push_out_the_idle_one_that_was_used_longest_ago(
    half: BaseModel, tmp_path: Path
):
    residents = Residents(merges=False, max_adapters=2, scratch=tmp_path)
    residents.install("base", half, None)
    assert install(residents, "a", half, set()) == []
    assert install(residents, "b", half, set()) == []
    residents.get("a")
    assert install(residents, "c", half, set()) == [2]
    assert "b" not in residents
    assert residents.make_room("d", {"a", "c"}) is None, "all are in use"
    assert install(residents, "d", half, {"a"}) == [3]
    assert "base" in residents


def test_newer_weights_of_a_snapshot_keep_its_number_and_share_no_cache(
    half: BaseModel, tmp_path: Path
):
    residents = Residents(merges=False, max_adapters=2, scratch=tmp_path)
    first = residents.install("a", half, weights())
    second = residents.install("a", half, weights())
    assert first.number == second.number
    assert first.salt != second.salt
    assert not second.is_verified


def test_files_of_adapters_go_when_the_engine_has_them(half: BaseModel, tmp_path: Path):
    residents = Residents(merges=True, max_adapters=2, scratch=tmp_path)
    for name in ("a", "b", "c"):
        residents.make_room(name, set())
        residents.install(name, half, weights())
        residents.verify(name)
    assert [name for name in ("a", "b", "c") if name in residents] == ["c"]
    assert residents.current == "c"
    assert not list(tmp_path.iterdir())


def test_log_probabilities_of_other_weights_are_an_error():
    truth = np.full(8, -3.0)
    check_probe(truth + 1e-5, truth, torch.float32)
    check_probe(truth + 0.02, truth, torch.bfloat16)
    for found, dtype in ((truth + 0.01, torch.float32), (truth + 0.2, torch.bfloat16)):
        with pytest.raises(TinsmithError, match="does not sample from the weights"):
            check_probe(found, truth, dtype)
    with pytest.raises(TinsmithError, match="does not sample from the weights"):
        check_probe(np.full(8, np.nan), truth, torch.float32)
