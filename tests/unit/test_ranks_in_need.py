"""Ranks of which one is short of memory neither hang nor compute anything else."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from tests.datums import cross_entropy_data
from tests.grieved_rank import (
    GRIEFS,
    enough,
    small_backward,
    small_for_graphs,
    small_forward,
)
from tests.unit.test_ranks import CROSS_ENTROPY, PARAMS, Ranks, flat
from tinsmith.backend.model import score
from tinsmith.backend.model.activations import recomputed_layers
from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.base_model import BaseModel, backbone, load_base_models
from tinsmith.backend.model.trainer import Trainer
from tinsmith.backend.ranks.launch import running_ranks

LENGTHS = (14, 13, 12, 12, 11, 9, 6, 4, 2)
ROOM = 30  # of a micro-batch
SHORTAGES = {"forward": small_forward, "backward": small_backward, "graphs": small_for_graphs}


@contextmanager
def running(model: Path, num_ranks: int, *, is_sharded: bool) -> Iterator[Ranks]:
    """This process and others that come to grief."""
    models = {"qwen3": str(model)}
    with running_ranks(
        models, "cpu", "float32", num_ranks, 1, is_sharded, program="tests.grieved_rank"
    ) as group:
        assert group is not None
        bases = load_base_models(models, "cpu", "float32", group.mesh)
        for base in bases.values():
            if base.shards is not None:
                base.shards.summon = partial(group.attend_forward, base.name)
        yield Ranks(group, bases)


@pytest.fixture(scope="module")
def ranks(qwen3_dir: Path) -> Iterator[Ranks]:
    """This process and another one, each with half of the base model."""
    with running(qwen3_dir, 2, is_sharded=True) as ranks:
        yield ranks


def assert_equal_steps(alone: Trainer, shared: Trainer) -> None:
    """Two steps of the ranks are those of one: log-probabilities to 1e-5, the gradient's norm and
    the weights to 1e-6 of each."""
    for step in range(2):
        data = cross_entropy_data(step, LENGTHS)
        one, two = (t.forward_backward(data, CROSS_ENTROPY, False) for t in (alone, shared))
        for ours, theirs in zip(two.logprobs, one.logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        norms = [trainer.optim_step(PARAMS)["grad_norm"] for trainer in (alone, shared)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    one, two = flat(alone), flat(shared)
    assert np.linalg.norm(two - one) <= 1e-6 * np.linalg.norm(one)
    shared.close()


def settings_for(wanted: object) -> LoraSettings:
    """Of an adapter with which the other ranks come to this grief."""
    rank = next(rank for rank, grief in GRIEFS.items() if grief is wanted)
    return LoraSettings(rank=rank, alpha=32.0)


def test_ranks_that_compute_layers_twice_compute_what_one_does_that_does_not(
    bases: dict[str, BaseModel], ranks: Ranks, monkeypatch: pytest.MonkeyPatch
):
    settings = settings_for(enough)
    alone = Trainer(bases["qwen3"], settings, 1, ROOM)
    shared = Trainer(ranks.bases["qwen3"], settings, 1, ROOM, ranks.group)
    shared._memory_bytes = 0
    contexts = []

    def counting(module: PreTrainedModel) -> AbstractContextManager[None]:
        contexts.append(module)
        return recomputed_layers(module)

    monkeypatch.setattr(score, "recomputed_layers", counting)
    assert_equal_steps(alone, shared)
    assert shared._module in contexts


@pytest.mark.parametrize("who", ["this rank", "the other", "both"])
@pytest.mark.parametrize("kind", SHORTAGES)
def test_ranks_of_which_one_is_short_of_memory_compute_what_one_does_that_is_not(
    bases: dict[str, BaseModel], ranks: Ranks, kind: str, who: str
):
    settings = settings_for(enough if who == "this rank" else SHORTAGES[kind])
    alone = Trainer(bases["qwen3"], settings, 1, ROOM)
    shared = Trainer(ranks.bases["qwen3"], settings, 1, ROOM, ranks.group)
    if who != "the other":
        SHORTAGES[kind](backbone(shared._module))
    assert_equal_steps(alone, shared)
    assert shared._token_budget < ROOM, "memory that was short is known"
    assert (shared._memory_bytes is not None) == (kind == "graphs")
