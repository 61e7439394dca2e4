"""Frozen opponents: the policy as it was earlier in its stage.

They are saved checkpoints, whose paths a killed stage finds in its progress, so that it goes on
against the opponents that it would have met without being killed.
"""

from collections.abc import Mapping
from dataclasses import replace

import tinker

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.randomness import generator
from tinsmith.rollouts import Sampler


def open_snapshots(
    settings: config.TrainSettings,
    training_client: tinker.TrainingClient,
    frozen: FrozenModels,
    paths: Mapping[str, str],
) -> "Snapshots | None":
    """The snapshots that a stage plays against; None where it plays against none."""
    paradigm = settings.paradigm
    if settings.stage.kind == "supervised" or isinstance(paradigm, config.SingleTurn):
        return None
    if paradigm.opponent is None or paradigm.opponent.kind == "self":
        return None
    staleness = settings.stage.max_staleness if settings.stage.kind == "grpo" else 0
    return Snapshots(paradigm.opponent, staleness, training_client, frozen, paths)


class Snapshots:
    """Sampler weights by the step that they were taken before, and which of them plays when."""

    def __init__(
        self,
        opponent: config.LatestOpponent | config.PoolOpponent,
        staleness: int,
        training_client: tinker.TrainingClient,
        frozen: FrozenModels,
        paths: Mapping[str, str],
    ) -> None:
        """`paths` are the tinker:// paths of the snapshots that there are, by step; batches are
        sampled up to `staleness` steps ahead."""
        self._opponent = opponent
        self._staleness = staleness
        self._training_client = training_client
        self._frozen = frozen
        self._paths = {int(step): path for step, path in paths.items()}

    @property
    def paths(self) -> dict[str, str]:
        """The tinker:// path of every snapshot, by step."""
        return {str(step): path for step, path in self._paths.items()}

    def take(self, step: int) -> None:
        """Save the policy as it is before a step, where a snapshot is due."""
        if step % self._opponent.every == 0 and step not in self._paths:
            future = self._training_client.save_weights_for_sampler(f"opponent-{step}")
            self._paths[step] = future.result().path

    def choose(self, policy: Sampler, seed: int) -> Sampler:
        """The opponent on the problem of a seed: a function of the policy's step, never of how far
        training has come meanwhile. Snapshots are older than any policy that may be meant; at first
        there is none, and the policy meets itself as it started."""
        before = policy.step - self._staleness
        steps = [step for step in sorted(self._paths) if step < before] or [0]
        if self._opponent.kind == "latest":
            chosen = steps[-1]
        else:
            newest = steps[-self._opponent.size :]
            chosen = int(generator(seed, "opponent").choice(newest))
        return replace(policy, client=self._frozen.client(self._paths[chosen]))
