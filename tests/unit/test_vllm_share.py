"""An engine that shares a GPU with the trainer takes what is left of it, or is refused in time."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.test_capacity import llama_8b  # noqa: F401 a fixture
from tests.unit.test_vllm_pool import settings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.capacity import GIB
from tinsmith.backend.vllm_sampler import launch
from tinsmith.backend.vllm_sampler.launch import Place, check_place, launch_of
from tinsmith.backend.vllm_sampler.share import (
    ALONE,
    CONTEXT_BYTES,
    Demand,
    choose_share,
    share_alone,
)
from tinsmith.errors import TinsmithError

WEIGHTS = 16 * GIB  # of 8 billion parameters in bfloat16


def gpu(free_gib: float, total_gib: float = 80) -> tuple[int, int]:
    return int(free_gib * GIB), int(total_gib * GIB)


def test_an_engine_with_a_gpu_of_its_own_takes_nearly_all_of_it_or_what_is_given():
    assert share_alone("auto", 1) == ALONE
    assert share_alone("auto", 2) == 0.45
    assert share_alone(0.97, 1) == 0.97
    with pytest.raises(TinsmithError, match=r"must be at most 0.33 for 3 models.*got 0.4"):
        share_alone(0.4, 3)


@pytest.mark.parametrize("num_engines", [1, 2])
@pytest.mark.parametrize("gpus", [[gpu(63)], [gpu(79)], [gpu(63), gpu(70)], [gpu(38, 48)]])
def test_engines_that_share_take_what_vllm_finds_free_and_leave_the_trainer_some(
    gpus: list[tuple[int, int]], num_engines: int
):
    """vLLM starts if the share of all memory is free behind its own context."""
    demand = Demand(0, WEIGHTS, num_engines)
    share = choose_share("auto", gpus, demand)
    assert share <= ALONE
    for free, total in gpus:
        assert share * total >= WEIGHTS
        assert num_engines * (share * total + CONTEXT_BYTES) <= free
    free, total = gpus[0]
    if share < ALONE and num_engines * (WEIGHTS + CONTEXT_BYTES) < 0.85 * free:
        assert 0.8 * free < num_engines * (share * total + CONTEXT_BYTES) < 0.97 * free


def test_what_is_chosen_before_the_trainer_loads_is_what_is_chosen_behind():
    before = choose_share("auto", [gpu(79)], Demand(WEIGHTS, WEIGHTS))
    assert before == choose_share("auto", [gpu(63)], Demand(0, WEIGHTS)) == 0.69


def test_a_share_that_is_too_large_is_refused_with_the_largest_that_is_not():
    demand = Demand(WEIGHTS, WEIGHTS)
    with pytest.raises(
        TinsmithError,
        match=r"must be at most 0\.77 .* got 0\.9: 79\.0 of 80\.0 GiB are free, of which the "
        r"trainer's weights will take 16\.0; lower it, or leave it at auto",
    ):
        choose_share(0.9, [gpu(79)], demand)
    assert choose_share(0.77, [gpu(79)], demand) == 0.77


@pytest.mark.parametrize("given", ["auto", 0.3])
def test_a_model_that_does_not_fit_twice_is_refused(given: float | str):
    with pytest.raises(
        TinsmithError, match=r"16\.0 GiB for its own copy .* --sampler transformers"
    ):
        choose_share(given, [gpu(31, 32)], Demand(WEIGHTS, WEIGHTS))


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: gpu(79))


@pytest.mark.usefixtures("one_gpu")
def test_settings_that_leave_too_little_are_refused_before_a_weight_is_read(
    llama_8b: dict[str, str],  # noqa: F811
):
    """There are none in the folder."""

    def of(**changes: Any) -> Any:
        return settings(device="cuda").model_copy(update={"models": llama_8b, **changes})

    check_place(of())
    with pytest.raises(TinsmithError, match=r"must be at most 0\.78 .* weights will take 15\.0"):
        check_place(of(vllm_gpu_memory_utilization=0.9))
    check_place(of(vllm_gpu_memory_utilization=0.78))
    with pytest.raises(TinsmithError, match="its own copy"):
        check_place(of(dtype="float32", models=llama_8b | {"again": llama_8b["llama-8b"]}))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("given", "share", "sleeps"), [("auto", 0.87, True), (0.6, 0.6, True), (0.4, 0.4, False)]
)
def test_an_engine_that_takes_most_of_a_shared_gpu_sleeps_while_the_trainer_computes(
    bases: dict[str, BaseModel],
    monkeypatch: pytest.MonkeyPatch,
    given: float | str,
    share: float,
    sleeps: bool,
):
    place = Place(Path(sys.executable), [0], is_shared=True)
    monkeypatch.setattr(launch, "place_of", lambda *_: place)
    found = launch_of(bases["qwen3"], settings(vllm_gpu_memory_utilization=given))
    assert found.engine["gpu_memory_utilization"] == share
    assert found.sleeps == sleeps
