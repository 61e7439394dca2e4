"""The engine does not keep anybody waiting for a process that is gone."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tinsmith.backend.engine import Engine
from tinsmith.backend.metrics import Metrics
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.backend.sampling.snapshots import Snapshots

GONE = RuntimeError("the training process of rank 1 has ended")


class Operation:
    """One that waits, and a promise that notes its result."""

    request_id = "1"

    def __init__(self) -> None:
        self.has_begun, self.may_end, self.is_resolved = Event(), Event(), Event()

    def __call__(self) -> None:
        self.has_begun.set()
        assert self.may_end.wait(60)
        self.is_resolved.set()


@pytest.fixture
def deaths() -> list[BaseException]:
    return []


@pytest.fixture
def engine(tmp_path: Path, deaths: list[BaseException]) -> Iterator[Engine]:
    engine = Engine(SamplerPool(Snapshots(tmp_path), 64), Metrics(), deaths.append)
    engine.start()
    yield engine
    engine.stop()


def begin(engine: Engine) -> Operation:
    operation = Operation()
    engine.submit("forward_backward", operation, operation)  # pyright: ignore[reportArgumentType] never resolved here
    assert operation.has_begun.wait(60)
    return operation


def test_an_operation_that_never_ends_once_a_process_died_makes_the_engine_dead(
    engine: Engine, deaths: list[BaseException]
):
    operation = begin(engine)
    engine.expect_end(GONE, grace_s=0.01)
    assert deaths == [GONE]
    assert engine.death is GONE
    engine.stop()  # does not wait for it
    operation.may_end.set()


def test_an_operation_that_ends_by_itself_is_all_that_a_dead_process_costs(
    engine: Engine, deaths: list[BaseException]
):
    engine.expect_end(GONE, grace_s=0.01)  # nothing is under way
    operation = begin(engine)
    operation.may_end.set()
    engine.expect_end(GONE, grace_s=60)
    assert operation.is_resolved.is_set()
    begin(engine).may_end.set()
    assert engine.death is None
    assert deaths == []
