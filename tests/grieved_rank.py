"""A rank of a server, but the first, that comes to grief: which way, the rank of an adapter says.

`python -m tests.grieved_rank FD` does what `tinsmith.backend.ranks.worker` does.
"""

import os
import signal
import sys
from collections.abc import Callable

from torch import distributed, nn

from tests.unit.test_activations import SmallMemoryForGraphs
from tests.unit.test_score import MESSAGES, SmallMemory
from tinsmith.backend.model.base_model import backbone
from tinsmith.backend.ranks import worker
from tinsmith.backend.ranks.link import Arrays, Command


def enough(_: nn.Module) -> None:
    """Memory that never runs out."""


def small_forward(module: nn.Module) -> None:
    """Memory for batches of 15 tokens, which is short before anything is computed."""
    SmallMemory(module, 15, MESSAGES[0], in_backward=False)


def small_backward(module: nn.Module) -> None:
    """Memory for batches of 15 tokens, which is short when half of the backward is done."""
    SmallMemory(module, 15, MESSAGES[0], in_backward=True)


def small_for_graphs(module: nn.Module) -> None:
    """Memory for sequences of 10 tokens, or for longer ones with layers computed twice."""
    SmallMemoryForGraphs(module, 10)


def die_in_forward(module: nn.Module) -> None:
    """The process of the last rank is killed behind the first layer, when the others wait for it
    in the second."""
    if distributed.get_rank() == distributed.get_world_size() - 1:
        module.get_submodule("layers.0").register_forward_hook(lambda *_: _die())


def die_in_reduction(_: nn.Module) -> None:
    """The process is killed when all are to hand in their gradients."""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# By the rank of the adapter.
GRIEFS: dict[int, Callable[[nn.Module], None]] = {
    4: enough,
    5: small_forward,
    6: small_backward,
    7: small_for_graphs,
    8: die_in_forward,
    9: die_in_reduction,
}


class GrievedWorker(worker.Worker):
    """Does to each adapter what its rank says."""

    def share(self, command: Command, arrays: Arrays) -> None:
        super().share(command, arrays)
        module, settings = self._modules[command["model"]]
        GRIEFS[settings.rank](backbone(module))

    def reduce(self, command: Command, arrays: Arrays) -> None:
        _, settings = self._modules[command["model"]]
        if GRIEFS[settings.rank] is die_in_reduction:
            _die()
        super().reduce(command, arrays)


if __name__ == "__main__":
    worker.Worker = GrievedWorker
    worker.main(int(sys.argv[1]))
