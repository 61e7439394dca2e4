"""A base model of which every rank holds a part: FSDP2 over the decoder layers.

The base is frozen, so nothing but its weights travels: a layer's are gathered before its forward
and again before its backward, and freed behind it. The embedding and the unembedding stay whole.

A gathering needs all ranks. So they agree on passes: each is one forward over all layers and, if
it trains, one backward. A rank that computes nothing in a pass, needs no backward or fails half
way takes part in the gatherings that are left, and nobody waits for ever.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel


class LostRanks(RuntimeError):
    """A gathering failed for good: the ranks are no longer at the same place, and never will be."""


class ShardedLayers:
    """The decoder layers of a base model, and how far the present pass is.

    `owners` are the modules whose weights are sharded, which all adapters on the base share;
    `summon` makes the other ranks call `attend_forward`, for a forward that this rank alone asks
    for: sampling, or a look at the model.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: nn.ModuleList,
        mesh: DeviceMesh,
        device: torch.device,
    ) -> None:
        """Move the layers to `device`, one at a time, and keep there the part of this rank."""
        self.owners: list[nn.Module] = []
        self.summon: Callable[[], None] | None = None
        self._device = device
        self._layers: list[FSDPModule] = []
        self._schedule: list[int] | None = None
        self._num_gathered = 0
        self._whole: FSDPModule | None = None
        self._is_alone = False
        self._loss: str | None = None
        for layer in layers:
            layer.to(device)
            owners = [part for part in layer.modules() if _owns_its_weights(part)]
            self._layers.append(fully_shard(_Weights(owners), mesh=mesh))
            self.owners += owners
        _watch(self, backbone, layers)

    @contextmanager
    def computing(self, forward_only: bool) -> Iterator[None]:
        """A pass in which this rank has something to compute."""
        self._anyone_computes(True)
        self._begin(forward_only)
        try:
            yield
        finally:
            self._end()

    def attend(self, forward_only: bool) -> None:
        """Take part in the others' passes until no rank has anything to compute, or, if the ranks
        have lost each other, in none."""
        while self._loss is None and self._anyone_computes(False):
            self._begin(forward_only)
            self._end()

    def attend_forward(self) -> None:
        """Take part in a forward of the rank that summons the others."""
        self._begin(forward_only=True)
        self._end()

    def begin_forward(self) -> None:
        """Before the first layer: a forward outside of any pass makes one."""
        if self._schedule is not None:
            return
        assert self.summon is not None, "only the first rank computes by itself"
        self._check()
        self.summon()
        self._begin(forward_only=True)
        self._is_alone = True

    def end_forward(self) -> None:
        """Behind the last layer, or after an error in one."""
        if self._is_alone:
            self._is_alone = False
            self._end()

    def gather(self, layer: int, *, is_backward: bool) -> None:
        """Have a layer's weights whole, and those of no other; layers that were left out since the
        last gathering are gathered in passing."""
        assert self._schedule is not None
        self.free()
        place = len(self._schedule) - 1 - layer if is_backward else layer
        self._pass_by(place)
        whole = self._layers[layer]
        _gather(whole)
        self._whole = whole
        self._num_gathered = place + 1

    def free(self) -> None:
        """Have no layer's weights whole any more."""
        if self._whole is not None:
            self._whole.reshard()
            self._whole = None

    def _begin(self, forward_only: bool) -> None:
        order = list(range(len(self._layers)))
        self._schedule = order if forward_only else order + order[::-1]
        self._num_gathered = 0

    def _end(self) -> None:
        """Gather what is left. A gathering that failed for want of memory, which is free by now, is
        made up for; one that fails again leaves the ranks at different places."""
        assert self._schedule is not None
        try:
            self.free()
            self._pass_by(len(self._schedule))
        except RuntimeError as error:
            raise self._lose(error) from error
        finally:
            self._schedule = None

    def _check(self) -> None:
        if self._loss is not None:
            raise LostRanks(self._loss)

    def _lose(self, error: Exception) -> LostRanks:
        self._loss = (
            f"weights could not be gathered from all ranks ({error}); restart the server and go on "
            "from a checkpoint"
        )
        return LostRanks(self._loss)

    def _pass_by(self, place: int) -> None:
        assert self._schedule is not None
        assert self._num_gathered <= place, "a layer computes out of its turn"
        for layer in self._schedule[self._num_gathered : place]:
            _gather(self._layers[layer])
            self._layers[layer].reshard()
            self._num_gathered += 1

    def _anyone_computes(self, does_this_rank: bool) -> bool:
        self._check()
        flag = torch.tensor(int(does_this_rank), device=self._device)
        try:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
            return bool(flag)
        except RuntimeError as error:
            raise self._lose(error) from error


class _Weights(nn.Module):
    """What FSDP shards and gathers in one piece: the weights of a decoder layer."""

    def __init__(self, owners: list[nn.Module]) -> None:
        super().__init__()
        self.owners = nn.ModuleList(owners)


def _owns_its_weights(part: nn.Module) -> bool:
    """Whether weights are right here, and none further down, where an adapter may be put in."""
    return bool(part._parameters) and not any(
        child._parameters for child in part.modules() if child is not part
    )


def _gather(layer: FSDPModule) -> None:
    # What is made in inference mode could never be trained through.
    with torch.inference_mode(False), torch.no_grad():
        layer.unshard()


def _watch(shards: ShardedLayers, backbone: nn.Module, layers: nn.ModuleList) -> None:
    """Hooks that are functions, so that every copy of the modules has the same."""
    backbone.register_forward_pre_hook(lambda *_: shards.begin_forward())
    backbone.register_forward_hook(lambda *_: shards.end_forward(), always_call=True)
    for number, layer in enumerate(layers):
        _watch_layer(shards, number, layer)


def _watch_layer(shards: ShardedLayers, number: int, layer: nn.Module) -> None:
    def before(*_: Any) -> None:
        shards.gather(number, is_backward=False)

    def behind(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        shards.free()
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda _: shards.gather(number, is_backward=True))

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(behind)


def shard(
    module: PreTrainedModel,
    backbone: nn.Module,
    layers: nn.ModuleList,
    mesh: DeviceMesh,
    device: torch.device,
) -> ShardedLayers:
    """Share out a model's decoder layers; everything else of it goes to `device` whole."""
    name = next(name for name, child in backbone.named_children() if child is layers)
    setattr(backbone, name, nn.ModuleList())
    nn.Module.to(module, device)
    setattr(backbone, name, layers)
    return ShardedLayers(backbone, layers, mesh, device)
