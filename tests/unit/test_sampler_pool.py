"""Who gets a replica and when, what is kept of weights, and how much memory there is."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tinsmith.backend.model.adapter import AdapterWeights, LoraSettings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling import snapshots as snapshots_module
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.memory import left_in_groups
from tinsmith.backend.sampling.pool import MAX_REPLICAS, SamplerPool
from tinsmith.backend.sampling.request import SamplingRequest
from tinsmith.backend.sampling.snapshots import MAX_IN_MEMORY, Snapshots
from tinsmith.backend.sampling.waiting import Waiting

SETTINGS = LoraSettings(rank=1, alpha=1.0)


def weights(value: float) -> AdapterWeights:
    name = "model.layers.0.mlp.up_proj"
    return AdapterWeights(SETTINGS, {name: (torch.full((1, 48), value), torch.ones(96, 1))})


def job(session_id: str, max_tokens: int = 3, done: list[str] | None = None, name: str = "") -> Job:
    request = SamplingRequest((5, 6), 1, max_tokens, 1.0, -1, 1.0, 0, frozenset())
    note = [] if done is None else done

    def fail(error: BaseException) -> None:
        raise error

    return Job(request, lambda _: note.append(name), fail, session_id)


@pytest.fixture
def qwen3(bases: dict[str, BaseModel]) -> BaseModel:
    return bases["qwen3"]


def finish(pool: SamplerPool) -> None:
    for _ in range(5000):
        if pool.is_idle:
            return
        pool.step()
    raise AssertionError("the pool never became idle")


def test_sessions_take_turns_in_the_line_each_in_its_own_order():
    jobs = [job(session, name=str(i)) for i, session in enumerate("aaabac")]
    line, order = Waiting(jobs), []
    line.remove(jobs[2])
    assert len(line) == 5
    while line:
        order.append(jobs.index(line.first()))
        line.pop_first()
    assert order == [0, 3, 5, 1, 4]


def test_a_snapshot_beyond_the_replicas_gets_its_turn_while_the_others_never_rest(
    qwen3: BaseModel, tmp_path: Path
):
    pool = SamplerPool(Snapshots(tmp_path / "s"), 1024, min_steps=5)
    names = [f"s{i}" for i in range(MAX_REPLICAS + 2)]
    done: list[str] = []
    for i, name in enumerate(names):
        pool.snapshots.add(name, qwen3, weights(float(i)))
        pool.add(name, job("one", done=done, name=name))
    finished_at: dict[str, int] = {}
    for step in range(400):
        for name in names[:MAX_REPLICAS]:  # requests without end
            pool.add(name, job("one", done=done, name=name))
        pool.step()
        for name in done:
            finished_at.setdefault(name, step)
    assert set(finished_at) == set(names)
    for name in names[:MAX_REPLICAS]:
        assert done.count(name) > 10, "making way is not giving up"
    finish(pool)
    assert len(done) == 400 * MAX_REPLICAS + len(names)


def test_at_most_so_many_batches_run_at_a_time(qwen3: BaseModel, tmp_path: Path):
    pool = SamplerPool(Snapshots(tmp_path / "s"), 1024)
    done: list[str] = []
    for i in range(2 * MAX_REPLICAS):
        pool.snapshots.add(f"s{i}", qwen3, weights(float(i)))
        pool.add(f"s{i}", job("one", 20, done, str(i)))
    most = 0
    while not pool.is_idle:
        pool.step()
        most = max(most, pool.num_running)
    assert most == MAX_REPLICAS
    assert sorted(done) == [str(i) for i in range(2 * MAX_REPLICAS)]


def test_a_request_is_cancelled_before_its_snapshot_has_a_replica(qwen3: BaseModel, tmp_path: Path):
    pool = SamplerPool(Snapshots(tmp_path / "s"), 1024)
    done: list[str] = []
    jobs = [job("one", 20, done, str(i)) for i in range(MAX_REPLICAS + 1)]
    for i, asked in enumerate(jobs):
        pool.snapshots.add(f"s{i}", qwen3, weights(float(i)))
        pool.add(f"s{i}", asked)
    assert pool.num_waiting == len(jobs)
    pool.cancel(jobs[-1])
    finish(pool)
    assert sorted(done) == [str(i) for i in range(MAX_REPLICAS)]


def pairs_of(snapshots: Snapshots, snapshot_id: str) -> float:
    found = snapshots.get(snapshot_id)[1]
    assert found is not None
    [(a, _)] = found.pairs.values()
    return float(a[0, 0])


def fill(snapshots: Snapshots, base: BaseModel, values: Sequence[int]) -> None:
    for value in values:
        snapshots.add(f"s{value}", base, weights(float(value)))


def test_older_weights_wait_on_the_disk_and_newer_ones_take_their_place(
    qwen3: BaseModel, tmp_path: Path
):
    snapshots = Snapshots(tmp_path / "s")
    fill(snapshots, qwen3, range(MAX_IN_MEMORY + 3))
    assert snapshots.num_in_memory == MAX_IN_MEMORY
    assert snapshots.num_on_disk == 3
    assert [pairs_of(snapshots, f"s{i}") for i in range(7)] == [0, 1, 2, 3, 4, 5, 6]
    snapshots.add("s0", qwen3, weights(9.0))
    assert pairs_of(snapshots, "s0") == 9
    snapshots.remove_all()
    assert not (tmp_path / "s").exists()


def test_idle_weights_are_dropped_only_where_the_disk_is_short(
    qwen3: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    roomy, short = Snapshots(tmp_path / "a"), Snapshots(tmp_path / "b", min_free_bytes=1 << 60)
    fill(short, qwen3, range(MAX_IN_MEMORY + 3))
    assert short.num_on_disk == 3, "short, but nobody was idle for long"
    monkeypatch.setattr(snapshots_module, "IDLE_S", 0.0)
    short.touch("s1")
    fill(short, qwen3, [100])
    assert short.dropped == {"s0", "s1", "s2"}
    assert "s1" not in short
    assert pairs_of(short, "s3") == 3, "what was written just now is there"
    fill(roomy, qwen3, range(MAX_IN_MEMORY + 3))
    assert not roomy.dropped


def test_a_pinned_checkpoint_outlives_its_folder(qwen3: BaseModel, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    weights(4.0).save(checkpoint, "qwen3")
    snapshots = Snapshots(tmp_path / "s")
    snapshots.pin("x:sample:0", checkpoint)
    shutil.rmtree(checkpoint)
    snapshots.adopt("x:sample:0", qwen3, SETTINGS)
    assert pairs_of(snapshots, "x:sample:0") == 4
    snapshots.remove("x:sample:0")
    assert not list((tmp_path / "s").iterdir())


def group(folder: Path, names: Sequence[str], limit: str, used: int, cached: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cached}\n")


def test_the_memory_of_control_groups_counts_with_what_the_kernel_would_drop(tmp_path: Path):
    two = ("memory.max", "memory.current")
    group(tmp_path / "job/step", two, "1000", 700, "inactive_file 100")
    group(tmp_path / "job", two, "max", 900, "inactive_file 0")
    assert list(left_in_groups(tmp_path, "0::/job/step\n")) == [400]
    group(tmp_path / "job", two, "950", 900, "inactive_file 0")
    assert sorted(left_in_groups(tmp_path, "0::/job/step\n")) == [50, 400]
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "memory/slurm", one, "5000", 4500, "total_inactive_file 7")
    lines = "11:memory:/slurm\n3:cpuset:/other\n0::/\n"
    assert list(left_in_groups(tmp_path, lines)) == [507]
    assert list(left_in_groups(tmp_path, "0::/../../elsewhere\n")) == []
    assert list(left_in_groups(tmp_path, "")) == []


def test_inside_a_container_the_group_is_the_root(tmp_path: Path):
    group(tmp_path, ("memory.max", "memory.current"), "800", 300, "inactive_file 0")
    assert list(left_in_groups(tmp_path, "0::/docker/0123\n")) == [500]
