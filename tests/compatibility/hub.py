"""A model hub on this machine, of which `tinker checkpoint push-hf` needs a handful of routes."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def local_hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its address, and the files that were committed to it, by name."""
    received: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"name": "me", "type": "user", "id": "me/adapter", "siblings": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("/repos/create"):
                self._answer({"url": f"{address}/me/adapter"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                self._answer({"files": [{"path": name, **modes} for name in names]})
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = base64.b64decode(entry["value"]["content"])
                        received[entry["value"]["path"]] = content
                commit = {"commitOid": "0" * 40, "commitUrl": f"{address}/me/adapter/commit/0"}
                self._answer(commit | {"success": True})
            else:
                self._answer({})

        def _answer(self, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address, received
        server.shutdown()
