"""The hub: what of its refusals a user is told."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub that answers as the real one does for what is gated, unknown or of no such revision."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403 if "gated" in self.path else 404)
            code = "RepoNotFound"
            if "gated" in self.path:
                code = "GatedRepo"
            elif "known" in self.path and "unknown" not in self.path:
                code = "RevisionNotFound"
            self.send_header("X-Error-Code", code)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


FETCH = """
import sys
from pathlib import Path
from tinsmith.config import HubData, HubModel
from tinsmith.errors import TinsmithError
from tinsmith.hub import download_model, load_hub_dataset
kind, name = sys.argv[1:]
try:
    if kind == "model":
        download_model(HubModel(kind="hub", name=name, revision="0" * 40), Path("m"), Path("d"))
    else:
        load_hub_dataset(HubData(kind="hub", name=name, revision="0" * 40, held_out=1))
except TinsmithError as error:
    sys.exit(str(error))
"""


def fetch(kind: str, name: str, folder: Path, **environment: str) -> str:
    """What fetching says in a process of its own, since the hub's address is read on import."""
    import os
    import subprocess
    import sys

    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", FETCH, kind, name],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": root, "HF_HOME": str(folder), "NO_PROXY": "*"}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/gated", "is gated: ask for access on its page"),
        ("org/unknown", "must exist on the hub"),
        ("org/known", "0000"),
    ],
)
def test_the_hubs_refusals_are_told_in_plain_words(
    kind: str, name: str, said: str, hub: str, tmp_path: Path
) -> None:
    answer = fetch(kind, name, tmp_path, HF_ENDPOINT=hub)
    assert said in answer
    assert f"{kind} {name}" in answer


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_no_network_is_told_with_what_needs_none(kind: str, tmp_path: Path) -> None:
    answer = fetch(kind, "org/name", tmp_path, HF_HUB_OFFLINE="1")
    assert f"{kind} org/name could not be fetched, because the hub cannot be reached" in answer
    assert "kind path or tiny for a model" in answer
