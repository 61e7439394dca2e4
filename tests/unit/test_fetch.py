"""Fetching weights over HTTP: whole or not at all, in finite time, without telling the link."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tinsmith.checkpoints import fetch
from tinsmith.errors import TinsmithError


class Handler(BaseHTTPRequestHandler):
    """/whole sends what it announces, /cut less, /stall nothing, and there is nothing else."""

    def do_GET(self) -> None:
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"0123456789" if self.path.startswith("/whole") else b"01234")
        if self.path.startswith("/stall"):
            self.server.may_end.wait(30)  # pyright: ignore[reportAttributeAccessIssue]

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.may_end = threading.Event()  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.may_end.set()  # pyright: ignore[reportAttributeAccessIssue]
        server.shutdown()


def test_a_whole_file_is_written(url: str, tmp_path: Path) -> None:
    fetch(f"{url}/whole", tmp_path / "a/file")
    assert (tmp_path / "a/file").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    ("path", "said"),
    [("cut", "cut after 5 of 10 bytes"), ("stall", "timed out"), ("missing", "404")],
)
def test_a_file_that_does_not_come_whole_is_an_error_without_the_link(
    url: str, tmp_path: Path, path: str, said: str
) -> None:
    with pytest.raises(TinsmithError, match=rf"the weights file file failed: .*{said}") as told:
        fetch(f"{url}/{path}?secret=hunter2", tmp_path / "file", timeout_s=0.3)
    assert "hunter2" not in str(told.value)
