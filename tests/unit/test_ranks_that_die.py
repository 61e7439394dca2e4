"""A rank that dies in the middle of things is told of at once, and leaves nobody waiting."""

import re
from pathlib import Path
from threading import Event

import psutil
import pytest
import torch

from tests.datums import cross_entropy_data
from tests.grieved_rank import die_in_forward, die_in_reduction
from tests.unit.test_ranks import CROSS_ENTROPY, PARAMS, Ranks
from tests.unit.test_ranks_in_need import LENGTHS, ROOM, running, settings_for
from tinsmith.backend.model.sharding import LostRanks
from tinsmith.backend.model.trainer import Trainer


def make_doomed(ranks: Ranks, grief: object) -> tuple[Trainer, list[RuntimeError], Event]:
    """A trainer, what the server is told of the death of a rank, and when it is."""
    told, has_told = [], Event()

    def tell(loss: RuntimeError) -> None:
        told.append(loss)
        has_told.set()

    ranks.group.when_one_dies(tell)
    return Trainer(ranks.bases["qwen3"], settings_for(grief), 1, ROOM, ranks.group), told, has_told


def test_a_rank_that_is_killed_in_a_forward_backward_is_named_and_ends_the_others(
    qwen3_dir: Path,
):
    message = r"rank 2 has ended \(exit code -9; .*restart the server and go on from a checkpoint"
    before = set(psutil.Process().children())
    with running(qwen3_dir, 3, is_sharded=True) as ranks:
        workers = [child for child in psutil.Process().children() if child not in before]
        assert len(workers) == 2
        trainer, told, has_told = make_doomed(ranks, die_in_forward)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                trainer.forward_backward(cross_entropy_data(1, LENGTHS), CROSS_ENTROPY, False)
        with pytest.raises(LostRanks, match="restart the server"):
            ranks.bases["qwen3"].module(torch.tensor([[1, 2, 3]]))
        assert has_told.wait(60)
        assert len(told) == 1
        assert re.search(message, str(told[0]))
        assert psutil.wait_procs(workers, 60)[1] == []


def test_a_rank_that_is_killed_when_gradients_are_added_up_is_named(qwen3_dir: Path):
    with running(qwen3_dir, 2, is_sharded=False) as ranks:
        trainer, _, has_told = make_doomed(ranks, die_in_reduction)
        with pytest.raises(RuntimeError, match=r"rank 1 has ended \(exit code -9"):
            trainer.forward_backward(cross_entropy_data(1, LENGTHS), CROSS_ENTROPY, False)
        assert has_told.wait(60)
        assert trainer.optim_step(PARAMS)["grad_norm"] == 0.0, "nothing was accumulated"
