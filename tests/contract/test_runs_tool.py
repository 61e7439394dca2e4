"""`scripts.tinker_runs` on a real server: what it lists is there, what it cancels has stopped."""

import json
import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import tinker

from scripts.tinker_runs import _pages, activity, main
from tests.clients import make_datum, random_tokens, train
from tests.in_process import KEY, Served, serving


@pytest.fixture(scope="module")
def served(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    store = tmp_path_factory.mktemp("runs") / "store"
    with pytest.MonkeyPatch.context() as patch, serving(qwen3_dir, store) as served:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("TINKER_BASE_URL", served.base_url)
        patch.setenv("TINKER_API_KEY", KEY)
        yield served


def tool(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out  # the server of this process logs there too
    start = re.search(r"^[\[{]", out, re.MULTILINE)
    assert start is not None, out
    return json.JSONDecoder().raw_decode(out[start.start() :])[0]


def test_runs_sessions_and_checkpoints_are_listed_and_one_is_removed(
    served: Served, capsys: pytest.CaptureFixture[str]
):
    with served.client() as service:
        run = service.create_lora_training_client("qwen3", rank=3, seed=1).result()
        state, sampler = (save("a").result().path for save in (run.save_state,
                          run.save_weights_for_sampler))  # fmt: skip
        [row] = [row for row in tool(capsys, "--list") if row["run"] == run.model_id]
        assert row["last_checkpoints"] == [state, sampler]
        found = (row["base_model"], row["rank"], row["state"], row["corrupted"])
        assert found == ("qwen3", 3, "active", False)
        assert tool(capsys, "--run", run.model_id)["checkpoints"] == [sampler, state]
        sessions = tool(capsys, "--list-sessions")
        assert [run.model_id] in [session["runs"] for session in sessions]
        assert main(["--delete-checkpoint", str(state)]) == 2
        assert "give --yes" in capsys.readouterr().err
        tool(capsys, "--delete-checkpoint", str(state), "--yes")
        left = [one["path"] for one in tool(capsys, "--checkpoints", run.model_id)]
        assert left == [sampler]
        assert main(["--list"]) == 0
        assert run.model_id in capsys.readouterr().out


def test_a_cancelled_run_stops_with_what_it_had_queued_and_others_go_on(
    served: Served, capsys: pytest.CaptureFixture[str]
):
    data = [make_datum(random_tokens(i, 400)) for i in range(24)]
    with served.client() as mine, served.client() as others:
        run = mine.create_lora_training_client("qwen3", rank=2, seed=1).result()
        other = others.create_lora_training_client("qwen3", rank=2, seed=1).result()
        state = run.save_state("kept").result().path
        queued = [run.forward_backward(data, "cross_entropy") for _ in range(12)]
        while served.core.engine.num_queued < 8:
            time.sleep(0.01)
        [row] = tool(capsys, "--cancel", run.model_id, "--yes")
        assert row == {"cancelled": run.model_id, "with": [run.model_id]}
        with pytest.raises(tinker.RequestFailedError, match="was cancelled"):
            queued[8].result(timeout=120)  # the eighth behind the one that runs, so in the queue
        with pytest.raises(tinker.TinkerError, match=r"the run was cancelled; go on from .*kept"):
            run.optim_step(tinker.AdamParams(learning_rate=1e-4)).result(timeout=120)
        train(other, 1)
        assert served.core.engine.num_queued == 0
        assert state in tool(capsys, "--run", run.model_id)["checkpoints"]
        assert main(["--cancel", run.model_id, "--yes"]) == 2
        assert "has ended" in capsys.readouterr().err
        cancelled = tool(capsys, "--cancel-all", "--yes")
        assert other.model_id in [row["cancelled"] for row in cancelled]
        assert run.model_id not in [row["cancelled"] for row in cancelled]


def test_what_is_not_there_is_said_in_words_before_anybody_is_asked(
    served: Served, capsys: pytest.CaptureFixture[str]
):
    with served.client() as service:
        run = service.create_lora_training_client("qwen3", rank=2, seed=1).result()
    for words, reason in (
        (("--run", "nosuch"), "training run 'nosuch' does not exist"),
        (("--checkpoints", "nosuch"), "training run 'nosuch' does not exist"),
        (("--cancel", "nosuch"), "training run 'nosuch' does not exist"),
        (("--delete-checkpoint", "nosuch"), "Invalid tinker path: nosuch"),
        (
            ("--delete-checkpoint", f"tinker://{run.model_id}/weights/a"),
            f"there is no checkpoint tinker://{run.model_id}/weights/a; --checkpoints",
        ),
        (("--cancel", run.model_id, "--yes"), "has ended: there is nothing to stop"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"tinker_runs: {reason}" in said or f"{run.model_id} {reason}" in said
        assert "Error code" not in said


class AnswersAll(BaseHTTPRequestHandler):
    """A service that is none of Tinsmith's."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')


def test_a_service_without_cancel_is_told_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Served
):
    with HTTPServer(("127.0.0.1", 0), AnswersAll) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{other.server_port}")
        assert main(["--cancel", "x", "--yes"]) == 2
        other.shutdown()
    assert "has no cancel: only a Tinsmith server does. Stop the prog" in capsys.readouterr().err
    monkeypatch.delenv("TINKER_BASE_URL")
    assert main(["--cancel-all", "--yes"]) == 2
    assert "the SDK's own address has no cancel" in capsys.readouterr().err


def test_who_does_not_answer_and_what_key_is_missing_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Served
):
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    for words in (["--list"], ["--cancel", "x", "--yes"]):
        assert main(words) == 2
        assert "no service answers at TINKER_BASE_URL http://127.0.0.1:9" in capsys.readouterr().err
    monkeypatch.delenv("TINKER_API_KEY")
    assert main(["--list"]) == 2
    assert "TINKER_API_KEY is not set" in capsys.readouterr().err


def test_a_service_that_gives_small_pages_is_listed_to_the_end():
    """The hosted one says nowhere how many it gives at most."""
    everything = list(range(7))
    assert _pages(lambda limit, offset: everything[offset:][: min(limit, 3)]) == everything


def test_what_stops_or_removes_asks_on_a_terminal(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with served.client() as service:
        run = service.create_lora_training_client("qwen3", rank=2, seed=1).result()
        state = str(run.save_state("asked").result().path)
        keyboard, screen = os.openpty()
        with open(screen) as terminal, open(keyboard):
            monkeypatch.setattr("sys.stdin", terminal)
            for words in (["--delete-checkpoint", state], ["--cancel", run.model_id]):
                os.write(keyboard, b"n\n")
                assert main(words) == 2
                assert "nothing was done" in capsys.readouterr().err
            train(run, 1)
            os.write(keyboard, b"y\n")
            assert main(["--delete-checkpoint", state]) == 0
        assert tool(capsys, "--checkpoints", run.model_id) == []


def test_a_run_is_active_recent_or_idle_by_its_last_request():
    now = datetime.now(UTC)
    ages = (timedelta(minutes=29), timedelta(minutes=31), timedelta(hours=25))
    assert [activity(now - age, now) for age in ages] == ["active", "recent", "idle"]
