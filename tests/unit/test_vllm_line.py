"""Whose turn it is at a vLLM engine, when it sleeps and when it is replaced, with a program in its
place that does as it is told; real engines are in tests/contract/test_vllm.py."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine_programs import OBEDIENT, launch_of_program
from tinsmith.backend.model.adapter import (
    LoraSettings,
    adapter_weights,
    attach_adapter,
)
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling import pool as pool_module
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.memory import max_tokens_kept
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.backend.sampling.request import SamplingRequest, SamplingResult
from tinsmith.backend.sampling.snapshots import Snapshots
from tinsmith.backend.vllm_sampler.holder import Holder
from tinsmith.backend.vllm_sampler.line import MAX_IN_FLIGHT, Line
from tinsmith.backend.vllm_sampler.pool import VllmPool
from tinsmith.backend.vllm_sampler.probe import expected_logprobs, probe_request
from tinsmith.settings import ServerSettings

REQUEST = SamplingRequest((5,), 1, 1, 1.0, -1, 1.0, 0, frozenset())


class Asked:
    """A line at such an engine, and what became of the requests on it."""

    def __init__(self, base: BaseModel, folder: Path, restart_every: int = 0) -> None:
        scores = expected_logprobs(base, None, probe_request(base).prompt)[-1, :16].tolist()
        self.orders = folder / "orders"
        launch = launch_of_program(
            folder,
            OBEDIENT,
            orders=str(self.orders),
            scores=scores,
            merges=False,
            sleeps=True,
            max_loras=4,
            max_lora_rank=32,
            max_model_len=64,
        )
        self.snapshots, self.base = Snapshots(folder / "s"), base
        self.changed = threading.Event()
        scratch = folder / "scratch"
        holder = Holder(base, launch, self.snapshots, scratch, self.changed.set)
        self.line = Line(holder, restart_every)
        self.num_done = 0

    def add_weights(self, name: str, rank: int = 2) -> None:
        """Of an adapter that changes nothing, so that the program's scores are right."""
        settings = LoraSettings(rank, 32.0)
        weights = adapter_weights(attach_adapter(self.base, settings, seed=0), settings)
        self.snapshots.add(name, self.base, weights)

    def ask(self, name: str, num_samples: int = 1) -> None:
        request = replace(REQUEST, num_samples=num_samples)
        self.line.add(name, Job(request, self._note, lambda error: pytest.fail(str(error))))

    def until(self, num_done: int) -> None:
        """Do as the server's engine thread does, until so many requests are answered."""
        while self.num_done < num_done:
            if self.line.is_idle:
                assert self.changed.wait(timeout=60), "nobody is about to do anything"
                self.changed.clear()
            else:
                self.line.step()

    def ask_pool(self, pool: VllmPool, request: SamplingRequest, name: str = "a") -> SamplingResult:
        results: list[SamplingResult] = []
        fail = pytest.fail
        pool.add(name, Job(request, results.append, lambda error: fail(str(error))))
        while not results:
            if pool.is_idle:
                assert self.changed.wait(timeout=60), "nobody is about to do anything"
                self.changed.clear()
            else:
                pool.step()
        return results[0]

    def said(self) -> list[str]:
        return self.orders.read_text().split()

    def _note(self, _: object) -> None:
        self.num_done += 1


@pytest.fixture
def asked(
    request: pytest.FixtureRequest, bases: dict[str, BaseModel], tmp_path: Path
) -> Iterator[Asked]:
    torch.set_num_threads(1)
    asked = Asked(bases["qwen3"], tmp_path, getattr(request, "param", 0))
    asked.line.start()
    yield asked
    asked.line.stop()


def test_an_engine_that_was_put_to_sleep_wakes_for_what_was_still_in_line(asked: Asked):
    asked.add_weights("a")
    asked.ask("a", MAX_IN_FLIGHT + 10)
    while not asked.line.num_running:  # the engine has what it has room for
        asked.line.step()
    asked.line.rest()
    assert asked.said()[-1] == "sleep"
    assert asked.num_done == 0
    asked.until(1)
    assert asked.said()[-2:] == ["wake", "sample"]


def test_an_engine_shows_what_it_computes_before_it_sleeps(asked: Asked):
    """A probe that it would forget in its sleep would keep the requests behind it for ever."""
    asked.add_weights("a")
    asked.ask("a")
    asked.line.rest()
    assert asked.num_done == 0
    assert asked.said()[-3:] == ["install", "sample", "sleep"]
    asked.until(1)


def test_weights_that_are_replaced_while_the_engine_sleeps_do_not_disturb_it(asked: Asked):
    asked.add_weights("a")
    asked.ask("a")
    asked.until(1)
    asked.line.rest()
    asked.add_weights("a")
    asked.line.replace("a")
    assert "install" not in asked.said()[asked.said().index("sleep") :]
    asked.ask("a")
    asked.until(2)
    assert asked.said()[-4:] == ["wake", "install", "sample", "sample"]


def test_what_an_engine_had_that_dies_before_it_rests_is_repeated(asked: Asked):
    pid = asked.line.holder.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    asked.ask("base:qwen3")
    os.kill(pid, signal.SIGKILL)
    asked.line.rest()
    assert asked.num_done == 0
    asked.until(1)
    assert asked.said().count("start") == 2


@pytest.mark.parametrize("asked", [1, 2], indirect=True)
def test_an_engine_is_replaced_before_it_takes_more_weights_than_it_may(
    asked: Asked, request: pytest.FixtureRequest
):
    limit = request.node.callspec.params["asked"]
    pids = []
    for index in range(4):
        asked.add_weights(f"{index}")
        for again in range(2):  # the weights that it has may be asked for as often as you like
            asked.ask(f"{index}")
            asked.until(2 * index + again + 1)
            pids.append(asked.line.holder.pid)
    assert pids == [pid for pid in dict.fromkeys(pids) for _ in range(2 * limit)]
    assert asked.said().count("start") == 4 // limit


@pytest.mark.parametrize("asked", [1], indirect=True)
def test_all_that_wait_together_are_served_where_the_engine_takes_one_at_a_time(asked: Asked):
    for name in ("a", "b", "c"):
        asked.add_weights(name)
        asked.ask(name)
    asked.until(3)
    assert asked.said().count("start") == 3


def test_what_waits_behind_weights_that_need_a_larger_engine_is_served_by_that(asked: Asked):
    for name, rank in (("wide", 64), ("narrow", 2)):
        asked.add_weights(name, rank)
        asked.ask(name)
    asked.until(2)
    assert asked.said().count("start") == 2


@pytest.fixture
def pool(asked: Asked) -> VllmPool:
    """Of the trainer's own model and that engine, which share a GPU."""
    settings = ServerSettings(models={}, api_key="tml-x", vllm_python=sys.executable)
    local = SamplerPool(asked.snapshots, 256)
    pool = VllmPool({"qwen3": asked.base}, settings, asked.snapshots, local)
    pool.lines["qwen3"] = asked.line
    asked.add_weights("a")
    asked.snapshots.add("base", asked.base, None)
    return pool


def test_what_the_trainers_model_samples_is_sized_by_the_memory_that_the_engine_gave_up(
    asked: Asked, pool: VllmPool, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []

    def look(base: BaseModel) -> int:
        said.append(asked.said()[-1])
        return max_tokens_kept(base)

    monkeypatch.setattr(pool_module, "max_tokens_kept", look)
    hot = replace(REQUEST, temperature=3.0, max_tokens=5)
    asked.ask("a")
    asked.ask_pool(pool, hot)
    asked.ask_pool(pool, replace(hot, max_tokens=1), "base")
    assert said == ["sleep", "sleep"]


def test_the_engine_sleeps_while_the_trainers_model_answers_in_its_place(
    asked: Asked, pool: VllmPool
):
    hot = replace(REQUEST, temperature=3.0, max_tokens=5)
    [completion] = asked.ask_pool(pool, hot).sequences
    assert len(completion.tokens) == 5
    assert asked.said()[-1] == "sleep"
    prompt_alone = replace(REQUEST, prompt=(5, 6, 7), wants_prompt_logprobs=True)
    scores = asked.ask_pool(pool, prompt_alone).prompt.logprobs
    assert scores is not None
    truth_TV = expected_logprobs(asked.base, None, (5, 6, 7))
    np.testing.assert_allclose(scores[1:], truth_TV[[0, 1], [6, 7]], rtol=0, atol=1e-5)
    assert asked.said()[-1] == "sleep"
    both = replace(prompt_alone, max_tokens=2)
    result = asked.ask_pool(pool, both)
    np.testing.assert_array_equal(result.prompt.logprobs, scores)
    assert [list(found.tokens) for found in result.sequences] == [[9]], "as that engine has it"
    assert asked.said()[-1] == "sample"


def test_on_a_cpu_the_trainers_model_samples_the_base_model_where_adapters_are_beside_it(
    asked: Asked, pool: VllmPool
):
    """vLLM would add an adapter to it, once there are as many as it has room for."""
    asked.ask_pool(pool, replace(REQUEST, max_tokens=2), "base")
    assert "install" not in asked.said()
    asked.ask_pool(pool, replace(REQUEST, max_tokens=2), "a")
    assert asked.said()[-3:] == ["install", "sample", "sample"]
