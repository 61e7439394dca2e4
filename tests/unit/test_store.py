"""Checkpoints are whole or absent, stay in their store, and go when their time is up."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.storage.store import Store
from tinsmith.errors import TinsmithError

RUN = "session:train:0"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    store.sessions.add("session", {})
    store.add_run(RUN, "session", "base", LoraSettings(4, 32.0), {"task": "sums"})
    yield store
    store.close()


def write(text: str):
    def fill(folder: Path) -> None:
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)

    return fill


def break_off(folder: Path) -> None:
    (folder / "a").write_text("half")
    raise OSError("no space left on device")


def content(store: Store, path: str) -> set[str]:
    checkpoint = store.checkpoint(path)
    assert checkpoint is not None
    return {file.read_text() for file in store.folder(checkpoint).iterdir()}


def folders(store: Store) -> list[Path]:
    return [path.parent for path in (store.directory / "runs").rglob("a")]


def test_a_write_that_fails_leaves_no_checkpoint_and_no_files(store: Store):
    with pytest.raises(OSError, match="no space"):
        store.save(RUN, "weights", "one", break_off)
    assert store.checkpoints() == []
    assert not [path for path in (store.directory / "runs").rglob("*") if path.is_file()]


def test_an_overwrite_that_fails_leaves_the_old_checkpoint(store: Store):
    path = store.save(RUN, "weights", "one", write("old")).path
    with pytest.raises(OSError, match="no space"):
        store.save(RUN, "weights", "one", break_off, overwrite=True)
    assert content(store, path) == {"old"}


def test_the_old_checkpoint_stands_until_the_new_one_is_recorded(store: Store):
    path = store.save(RUN, "weights", "one", write("old")).path

    def look(folder: Path) -> None:
        write("new")(folder)
        assert content(store, path) == {"old"}

    store.save(RUN, "weights", "one", look, overwrite=True)
    assert content(store, path) == {"new"}
    assert len(folders(store)) == 1
    assert len(store.checkpoints()) == 1


def test_a_name_that_is_taken_is_refused(store: Store):
    path = store.save(RUN, "weights", "one", write("old")).path
    with pytest.raises(TinsmithError, match="exists already; choose another name"):
        store.save(RUN, "weights", "one", write("new"))
    assert content(store, path) == {"old"}


def test_the_kinds_of_checkpoints_have_names_of_their_own(store: Store):
    paths = [
        store.save(RUN, kind, "one", write(kind)).path
        for kind in ("weights", "sampler_weights", "external_weights")
    ]
    assert [content(store, path) for path in paths] == [
        {"weights"}, {"sampler_weights"}, {"external_weights"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/x", "a/b", "a\\b", ".hidden", "-x", "a b", "a\n",
             "\u00fc", "a\0b", "x" * 201],
)  # fmt: skip
def test_a_name_that_is_no_plain_file_name_is_refused(store: Store, name: str):
    with pytest.raises(TinsmithError, match="checkpoint name"):
        store.save(RUN, "weights", name, write("x"))
    assert store.checkpoints() == []


def test_what_has_expired_is_removed_and_nothing_else(store: Store):
    kept = store.save(RUN, "weights", "kept", write("kept")).path
    later = store.save(RUN, "weights", "later", write("later"), ttl_seconds=3600).path
    gone = store.save(RUN, "weights", "gone", write("gone"), ttl_seconds=0).path
    time.sleep(0.01)
    assert store.checkpoint(gone) is None
    store.remove_expired()
    assert {c.path for c in store.checkpoints()} == {kept, later}
    assert len(folders(store)) == 2
    assert content(store, kept) == {"kept"}
    assert content(store, later) == {"later"}


def test_the_name_of_an_expired_checkpoint_is_free(store: Store):
    store.save(RUN, "weights", "one", write("old"), ttl_seconds=0)
    time.sleep(0.01)
    path = store.save(RUN, "weights", "one", write("new")).path
    assert len(folders(store)) == 1
    store.remove_expired()
    assert content(store, path) == {"new"}


def test_an_overwrite_without_time_to_live_outlives_the_old_one(store: Store):
    store.save(RUN, "weights", "one", write("old"), ttl_seconds=1)
    path = store.save(RUN, "weights", "one", write("new"), overwrite=True).path
    found = store.checkpoint(path)
    assert found is not None
    assert found.expires is None


def test_a_second_server_on_the_same_store_sees_everything(store: Store):
    path = store.save(RUN, "weights", "one", write("x"), user_metadata={"step": "3"}).path
    other = Store(store.directory)
    run, checkpoint = other.run(RUN), other.checkpoint(path)
    other.close()
    assert run == store.run(RUN)
    assert run is not None
    assert run.lora == LoraSettings(4, 32.0)
    assert run.user_metadata == {"task": "sums"}
    assert checkpoint == store.checkpoint(path)
    assert checkpoint is not None
    assert checkpoint.user_metadata == {"step": "3"}
    assert checkpoint.size_bytes == 2


def test_checkpoints_are_listed_newest_first(store: Store):
    for name in ("one", "two", "three"):
        store.save(RUN, "weights", name, write(name))
    assert [c.name for c in store.checkpoints(RUN)] == ["three", "two", "one"]
    assert store.checkpoints("another:train:0") == []


def test_a_store_of_another_version_is_refused_and_left_alone(tmp_path: Path):
    database = sqlite3.connect(tmp_path / "tinsmith.sqlite")
    database.executescript("CREATE TABLE runs (x); PRAGMA user_version = 99;")
    with pytest.raises(TinsmithError, match=r"schema 99, this one reads 2.*--store"):
        Store(tmp_path)
    assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("runs",)]


VERSION_1 = """
PRAGMA user_version = 1;
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY, created TEXT NOT NULL, details TEXT NOT NULL, ended TEXT);
CREATE TABLE runs (
    model_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, base_model TEXT NOT NULL,
    lora TEXT NOT NULL, user_metadata TEXT, last_request TEXT NOT NULL);
CREATE TABLE checkpoints (
    path TEXT PRIMARY KEY, model_id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    folder TEXT NOT NULL, time TEXT NOT NULL, size_bytes INTEGER NOT NULL, expires TEXT,
    user_metadata TEXT);
CREATE TABLE samplers (
    sampler_id TEXT PRIMARY KEY, base_model TEXT NOT NULL, model_path TEXT);
INSERT INTO sessions VALUES (
    's', '2026-01-01T00:00:00.000000+00:00', '{"display_name": "old"}', NULL);
INSERT INTO runs VALUES ('s:train:0', 's', 'base', '{"rank": 4, "alpha": 32.0, "train_attn": true,
    "train_mlp": true, "train_unembed": true}', NULL, '2026-01-01T00:00:00.000000+00:00');
INSERT INTO checkpoints VALUES ('tinker://s:train:0/weights/one', 's:train:0', 'weights', 'one',
    'runs/s_train_0/weights/one-1', '2026-01-01T00:00:00.000000+00:00', 2, NULL, NULL);
INSERT INTO samplers VALUES ('s:sample:0', 'base', 'tinker://s:train:0/weights/one');
"""


def test_a_store_of_version_1_is_brought_up_to_date_with_all_that_is_in_it(tmp_path: Path):
    database = sqlite3.connect(tmp_path / "tinsmith.sqlite")
    database.executescript(VERSION_1)
    database.close()
    folder = tmp_path / "runs/s_train_0/weights/one-1"
    folder.mkdir(parents=True)
    write("x")(folder)
    for _ in range(2):  # once brought up to date, it is read as it is
        store = Store(tmp_path)
        assert content(store, "tinker://s:train:0/weights/one") == {"x"}
        checkpoint = store.checkpoints()[-1]
        assert not checkpoint.public
        assert store.runs(10, 0)[0][0].lora == LoraSettings(4, 32.0)
        session = store.sessions.find("s")
        assert session is not None
        assert session.details == {"display_name": "old"}
        sampler = store.sampler("s:sample:0")
        assert sampler is not None
        assert sampler.model_path == checkpoint.path
        store.save("s:train:0", "weights", "two", write("y"), overwrite=True)
        store.close()


KILLED = """
import os, pathlib, signal, sys
from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.storage.store import Store
store = Store(pathlib.Path(sys.argv[1]))
def write(folder):
    (folder / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
store.save("session:train:0", "weights", sys.argv[2], write, overwrite=True)
"""


def test_what_a_killed_server_had_begun_is_cleared_up_at_the_next_start(store: Store):
    path = store.save(RUN, "weights", "one", write("whole")).path
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", KILLED, str(store.directory), name], check=False)
    assert len(folders(store)) == 3
    beside = Store(store.directory)  # `store` may be writing just this
    beside.close()
    assert len(folders(store)) == 3
    store.close()
    again = Store(store.directory)
    assert len(folders(again)) == 1
    assert content(again, path) == {"whole"}
    assert [c.path for c in again.checkpoints()] == [path]
    again.close()


def test_one_checkpoint_is_deleted_and_no_other(store: Store):
    paths = [store.save(RUN, "weights", name, write(name)).path for name in ("one", "two")]
    checkpoint = store.checkpoint(paths[0])
    assert checkpoint is not None
    store.delete(checkpoint)
    assert store.checkpoint(paths[0]) is None
    assert content(store, paths[1]) == {"two"}
    assert len(folders(store)) == 1
    again = store.save(RUN, "weights", "one", write("new")).path
    store.delete(checkpoint)  # of the same name, but another one
    assert content(store, again) == {"new"}


def test_a_time_to_live_can_be_set_and_lifted(store: Store):
    path = store.save(RUN, "weights", "one", write("x"), ttl_seconds=3600).path
    store.set_ttl(path, None)
    found = store.checkpoint(path)
    assert found is not None
    assert found.expires is None
    store.set_ttl(path, 0)
    time.sleep(0.01)
    assert store.checkpoint(path) is None
    store.remove_expired()
    assert folders(store) == []
