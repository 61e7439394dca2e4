"""The first rank's side: it shares out the data and adds up the gradients."""

import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import count
from math import ceil

import numpy as np
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from tinsmith.backend.model.adapter import AdapterWeights, LoraSettings, lora_pairs
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.sharding import LostRanks, ShardedLayers
from tinsmith.backend.ranks.link import Arrays, Command, Link
from tinsmith.backend.ranks.shares import split
from tinsmith.backend.ranks.watch import Watch
from tinsmith.backend.ranks.work import Work, score_work, sum_gradients
from tinsmith.errors import TinsmithError


class RankGroup:
    """The ranks of a server, this process being the first. The engine's thread alone calls it."""

    def __init__(
        self,
        links: Sequence[Link],
        processes: Sequence[subprocess.Popen[bytes]],
        mesh: DeviceMesh | None = None,
    ) -> None:
        """`mesh` is given where the ranks share out the base models."""
        self._links = links
        self._watch = Watch(processes)
        self.mesh = mesh
        self._numbers = count()

    def close(self) -> None:
        """The others are about to end, which is no loss."""
        self._watch.close()

    def when_one_dies(self, act: Callable[[RuntimeError], None]) -> None:
        """Call `act`, on a thread of its own, once a rank has died and the others were ended."""
        self._watch.on_loss = act

    @property
    def is_broken(self) -> bool:
        """Whether ranks have died, so that nothing is trained any more."""
        return self._watch.has_loss

    def start(self, rank: int, order: Command) -> None:
        """Tell a rank who it is; returns when it is about to meet the others."""
        self._send(rank, order)
        self._receive(rank)

    def load(self) -> None:
        """Returns when all other ranks have their base models, or says which could not have them.

        Models that are shared out are whole in main memory before: one rank loads after the other.
        """
        ranks = range(1, 1 + len(self._links))
        for turn in [[rank] for rank in ranks] if self.mesh else [ranks]:
            for rank in turn:
                self._send(rank, {"name": "load"})
            for rank in turn:
                answer, _ = self._receive(rank)
                if answer["error"] is not None:
                    raise TinsmithError(f"on rank {rank}: {answer['error']}")
        self._watch.start()

    def share(self, base_model: str, settings: LoraSettings) -> int:
        """Make an adapter known to all ranks; returns its number among them."""
        number = next(self._numbers)
        self._tell_all("share", model=number, base_model=base_model, settings=asdict(settings))
        return number

    def attend_forward(self, base_model: str) -> None:
        """Let every rank take part in a forward of this one over a base model that is sharded."""
        self._tell_all("attend_forward", base_model=base_model)

    def send_weights(self, number: int, weights: AdapterWeights) -> None:
        """Let every rank go on with these weights."""
        arrays = {
            f"{name}.{side}": tensor.cpu().numpy()
            for name, pair in weights.pairs.items()
            for side, tensor in zip("AB", pair, strict=True)
        }
        self._tell_all("weights", arrays, model=number)

    def free(self, number: int) -> None:
        """Let every rank forget an adapter."""
        self._tell_all("free", model=number)

    def score(
        self,
        number: int,
        module: PreTrainedModel,
        shards: ShardedLayers | None,
        data: Sequence[Datum],
        choice: LossChoice,
        token_budget: int,
        forward_only: bool,
        min_micro_batches: int,
        memory_bytes: int | None,
    ) -> Scored:
        """`model.score.score`, shared out by tokens: loss and gradient are sums over all ranks, and
        so is the number of micro-batches.

        An error on any rank is raised once all have answered; no gradient is added then.
        """
        shares = split([len(datum.tokens) for datum in data], 1 + len(self._links))
        floor = ceil(min_micro_batches / len(shares))
        own, *others = [
            Work(
                rows,
                [data[row] for row in rows],
                choice,
                token_budget,
                forward_only,
                floor,
                memory_bytes,
            )
            for rows in shares
        ]
        for rank, work in enumerate(others, 1):
            command, arrays = work.encode()
            self._send(rank, {"name": "score", "model": number, "work": command}, arrays)
        parts = self._answers(lambda: score_work(module, shards, own), others, number)
        if not forward_only:
            self._sum_gradients(number, module)
        logprobs: list[np.ndarray] = [np.empty(0)] * len(data)
        for rows, part in zip(shares, parts, strict=True):
            for row, array in zip(rows, part.logprobs, strict=True):
                logprobs[row] = array
        return Scored(
            sum(part.loss for part in parts),
            logprobs,
            _least(part.token_budget for part in parts),
            _least(part.memory_bytes for part in parts),
        )

    def _answers(
        self, score_own: Callable[[], Scored], others: Sequence[Work], number: int
    ) -> list[Scored]:
        """Everybody's part, this rank's first; raised only when nobody is at work any more."""
        parts: list[Scored] = []
        errors: list[Exception] = []
        try:
            parts.append(score_own())
        except LostRanks as error:
            raise self._watch.end_all(error) from error
        except Exception as error:
            errors.append(error)
        for rank, work in enumerate(others, 1):
            answer, arrays = self._receive(rank)
            if answer["error"] is None:
                logprobs = [arrays[str(i)] for i in range(len(work.rows))]
                left = answer["token_budget"], answer["memory_bytes"]
                parts.append(Scored(answer["loss"], logprobs, *left))
            else:
                kind = TinsmithError if answer["is_users"] else RuntimeError
                errors.append(kind(f"on rank {rank}: {answer['error']}"))
        if errors:
            self._tell_all("drop", model=number)
            raise errors[0]
        return parts

    def _sum_gradients(self, number: int, module: PreTrainedModel) -> None:
        self._tell_all("reduce", model=number)
        try:
            sum_gradients([p for pair in lora_pairs(module) for p in pair[1:]], is_first=True)
        except RuntimeError as error:
            raise self._watch.end_all(error) from error

    def _tell_all(self, name: str, arrays: Arrays | None = None, **more: object) -> None:
        for rank in range(1, 1 + len(self._links)):
            self._send(rank, {"name": name, **more}, arrays)

    def _send(self, rank: int, command: Command, arrays: Arrays | None = None) -> None:
        try:
            self._links[rank - 1].send(command, arrays)
        except OSError as error:
            raise self._watch.gone(rank) from error

    def _receive(self, rank: int) -> tuple[Command, dict[str, np.ndarray]]:
        try:
            return self._links[rank - 1].receive()
        except (EOFError, OSError) as error:
            raise self._watch.gone(rank) from error


def _least(left: Iterable[int | None]) -> int | None:
    return min((size for size in left if size is not None), default=None)
