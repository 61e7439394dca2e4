"""Requests of a model run in the order of seq_id, each once, and their answers can be fetched."""

import asyncio

import pytest

from tinsmith.backend import futures
from tinsmith.backend.futures import Failure, JsonResult, Promise, Promises, ProtoResult
from tinsmith.backend.sequencer import Sequencer, TooMuchHeld
from tinsmith.errors import TinsmithError


def run_in_order_of(arrivals: list[int]) -> tuple[list[int], list[Promise]]:
    """Submit requests with these seq_ids; returns the seq_ids in the order of their start."""
    started: list[int] = []

    async def submit() -> list[Promise]:
        sequencer = Sequencer(Promises())
        sequencer.open("m")
        return [
            sequencer.submit("m", seq_id, lambda _, seq_id=seq_id: started.append(seq_id))
            for seq_id in arrivals
        ]

    return started, asyncio.run(submit())


def test_requests_start_in_the_order_of_seq_id_however_they_arrive():
    assert run_in_order_of([3, 2, 5, 1, 4])[0] == [1, 2, 3, 4, 5]


def test_a_request_waits_for_those_before_it():
    assert run_in_order_of([2, 3])[0] == []


def test_a_repeated_request_starts_once_and_gets_the_first_promise():
    started, promises = run_in_order_of([1, 2, 1, 2, 2])
    assert started == [1, 2]
    assert promises[0] is promises[2]
    assert promises[1] is promises[3] is promises[4]


def test_a_refused_request_lets_those_behind_it_go_on():
    async def claim() -> None:
        sequencer = Sequencer(Promises())
        sequencer.open("m")
        started: list[int] = []
        sequencer.submit("m", 2, lambda _: started.append(2))
        refused = sequencer.refuse("m", 1, "no such thing")
        assert started == [2]
        assert await refused.wait(5) == Failure("no such thing", "user")

    asyncio.run(claim())


def test_what_waits_behind_a_request_that_never_comes_fails_and_the_model_goes_on():
    async def claim() -> None:
        sequencer = Sequencer(Promises(), gap_timeout_s=0.2)
        sequencer.open("m")
        started: list[int] = []

        def submit(seq_id: int) -> Promise:
            return sequencer.submit("m", seq_id, lambda _: started.append(seq_id))

        submit(1)
        behind = submit(3)
        await asyncio.sleep(0.15)
        later = submit(4)  # does not put the end of the wait off
        for promise in (behind, later):
            failure = await promise.wait(0.15)
            assert isinstance(failure, Failure)
            assert "seq_id 2 of model m did not come within 0.2 s" in failure.message
            assert "goes on with seq_id 5" in failure.message
        late = await submit(2).wait(5)
        assert isinstance(late, Failure)
        assert "is not carried out" in late.message
        assert submit(3) is behind
        submit(5)
        assert started == [1, 5]

    asyncio.run(claim())


def test_a_gap_that_is_filled_in_time_costs_nothing():
    async def claim() -> None:
        sequencer = Sequencer(Promises(), gap_timeout_s=0.1)
        sequencer.open("m")
        started: list[int] = []
        for seq_id in (2, 1):
            sequencer.submit("m", seq_id, lambda _, seq_id=seq_id: started.append(seq_id))
        await asyncio.sleep(0.2)
        waits = sequencer.submit("m", 3, lambda _: started.append(3))
        assert started == [1, 2, 3]
        assert not waits.is_done

    asyncio.run(claim())


def test_what_waits_is_answered_when_its_session_ends():
    async def claim() -> None:
        sequencer = Sequencer(Promises())
        sequencer.open("s:train:0")
        sequencer.open("other:train:0")
        waits = sequencer.submit("s:train:0", 2, lambda _: None)
        sequencer.close("s")
        failure = await waits.wait(5)
        assert isinstance(failure, Failure)
        assert "its session has ended" in failure.message
        assert not sequencer.is_open("s:train:0")
        assert sequencer.is_open("other:train:0")

    asyncio.run(claim())


@pytest.mark.parametrize("seq_id", [0, -1, 10_001, 2**60])
def test_a_seq_id_that_no_client_can_mean_is_refused_and_changes_nothing(seq_id: int):
    async def claim() -> None:
        promises = Promises()
        sequencer = Sequencer(promises)
        sequencer.open("m")
        with pytest.raises(TinsmithError, match=f"next one that is due, 1; got {seq_id}"):
            sequencer.submit("m", seq_id, lambda _: None)
        assert promises.get(f"m:{seq_id}") is None

    asyncio.run(claim())


def test_a_request_whose_answer_was_forgotten_does_not_act_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(futures, "MAX_FETCHED_BYTES", 10)

    async def claim() -> None:
        promises = Promises()
        sequencer = Sequencer(promises)
        sequencer.open("m")
        started: list[int] = []
        for seq_id in (1, 2):
            sequencer.submit("m", seq_id, lambda _, seq_id=seq_id: started.append(seq_id))
            promises.note_fetched(f"m:{seq_id}", ProtoResult(b"x" * 20))
        assert promises.get("m:1") is None
        failure = await sequencer.submit("m", 1, lambda _: started.append(1)).wait(5)
        assert isinstance(failure, Failure)
        assert "m:1 is not carried out" in failure.message
        assert started == [1, 2]

    asyncio.run(claim())


def test_models_do_not_wait_for_each_other():
    async def claim() -> None:
        sequencer = Sequencer(Promises())
        sequencer.open("m")
        sequencer.open("n")
        started: list[str] = []
        sequencer.submit("m", 2, lambda _: started.append("m"))
        sequencer.submit("n", 1, lambda _: started.append("n"))
        assert started == ["n"]

    asyncio.run(claim())


def test_fetched_answers_are_kept_within_a_bounded_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(futures, "MAX_FETCHED_BYTES", 1000)

    async def claim() -> None:
        promises = Promises()
        for i in range(50):
            result = ProtoResult(b"x" * 300)
            promises.create(str(i)).resolve(result)
            if i != 7:  # never fetched, hence never forgotten
                promises.note_fetched(str(i), result)
        kept = [i for i in range(50) if promises.get(str(i)) is not None]
        assert kept == [7, 47, 48, 49]

    asyncio.run(claim())


def test_an_answer_can_be_fetched_twice():
    async def claim() -> None:
        promises = Promises()
        promise = promises.create("a")
        promise.resolve(JsonResult({"n": 1}))
        for _ in range(2):
            assert await promise.wait(5) == JsonResult({"n": 1})
            promises.note_fetched("a", JsonResult({"n": 1}))
        assert promises.get("a") is promise

    asyncio.run(claim())


def test_what_is_held_behind_gaps_is_bounded_and_what_closes_a_gap_is_always_taken():
    async def claim() -> None:
        sequencer = Sequencer(Promises(), max_held_bytes=100)
        started: list[tuple[str, int]] = []

        def submit(model_id: str, seq_id: int, size_bytes: int) -> None:
            note = lambda _: started.append((model_id, seq_id))  # noqa: E731
            sequencer.submit(model_id, seq_id, note, size_bytes)

        for model_id in "mn":
            sequencer.open(model_id)
        submit("m", 2, 60)
        submit("m", 2, 60)  # repeated: it waits once
        submit("n", 2, 40)
        for model_id in "mn":
            with pytest.raises(TooMuchHeld, match=r"waits for seq_id 1, and 100 bytes .* at most"):
                submit(model_id, 3, 1)
        submit("m", 1, 1000)
        submit("n", 3, 60)
        submit("n", 1, 0)
        assert started == [("m", 1), ("m", 2), ("n", 1), ("n", 2), ("n", 3)]

    asyncio.run(claim())
