"""Snapshots of the policy as opponents: when one is taken, and which one is met."""

from typing import Any, cast

import tinker

from tests.speakers import CHAT, Ready, frozen_models
from tinsmith import config
from tinsmith.opponents import Snapshots
from tinsmith.rollouts import Sampler


class Trainer:
    """Saves nothing, and names what it would have saved."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    def save_weights_for_sampler(self, name: str) -> Ready:
        self.saved.append(name)
        return Ready(cast(Any, type("Saved", (), {"path": f"tinker://{name}"})))


class NamedClients(dict[str | None, str]):
    def __missing__(self, path: str | None) -> str:
        return str(path)


def snapshots(trainer: Trainer, paths: dict[str, str] | None = None, **opponent: Any) -> Snapshots:
    options = {"kind": "latest", "every": 3} | opponent
    section = config.check_section(
        config.Debate, {"kind": "debate", "judge": {"kind": "mock"}, "opponent": options}, "test"
    )
    assert section.opponent.kind != "self"
    frozen = frozen_models(cast(Any, NamedClients()))
    client = cast(tinker.TrainingClient, trainer)
    return Snapshots(section.opponent, 0, client, frozen, paths or {})


def opponents_of(shots: Snapshots, step: int, num_problems: int = 1) -> list[str]:
    policy = Sampler(cast(Any, "policy"), CHAT, max_tokens=8, step=step)
    chosen = [shots.choose(policy, seed).client for seed in range(num_problems)]
    return [str(client).removeprefix("tinker://opponent-") for client in chosen]


def test_the_latest_opponent_is_the_newest_snapshot_from_before_the_step():
    shots = snapshots(Trainer())
    met = []
    for step in range(8):
        shots.take(step)
        met += opponents_of(shots, step)
    assert met == ["0", "0", "0", "0", "3", "3", "3", "6"]


def test_the_pool_draws_from_its_newest_snapshots_by_the_seed():
    shots = snapshots(Trainer(), kind="pool", every=2, size=3)
    for step in range(11):
        shots.take(step)
    assert set(opponents_of(shots, 10, 50)) == {"4", "6", "8"}
    assert opponents_of(shots, 10, 50) == opponents_of(shots, 10, 50)
    assert set(opponents_of(shots, 1, 50)) == {"0"}


def test_snapshots_that_were_read_back_are_the_same_opponents_and_are_not_taken_again():
    first, again = Trainer(), Trainer()
    shots = snapshots(first, kind="pool", every=2)
    for step in range(7):
        shots.take(step)
    resumed = snapshots(again, shots.paths, kind="pool", every=2)
    for step in (6, 7, 8):
        resumed.take(step)
    assert again.saved == ["opponent-8"]
    assert opponents_of(resumed, 7, 50) == opponents_of(shots, 7, 50)
