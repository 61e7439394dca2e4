"""What no client can do: send without bound, guess the key, leave the store, or run code."""

import ast
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.in_process import KEY, Served, serving
from tinsmith.backend.storage.store import check_name
from tinsmith.backend.wire.gate import MAX_BODY_BYTES, MAX_DATA_BYTES
from tinsmith.backend.wire.routes import CLIENT_CONFIG
from tinsmith.errors import TinsmithError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(qwen3_dir, tmp_path_factory.mktemp("guarded") / "store") as served:
        yield served


def connect(served: Served, path: str, *headers: tuple[str, str]) -> http.client.HTTPConnection:
    """A request whose body is still to be sent."""
    connection = http.client.HTTPConnection(served.base_url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", path)
    for name, value in (("X-API-Key", KEY), ("Content-Type", "application/json"), *headers):
        connection.putheader(name, value)
    connection.endheaders()
    return connection


@pytest.mark.parametrize(
    ("path", "bound"),
    [
        ("/api/v1/forward_backward", MAX_DATA_BYTES),
        ("/api/v1/asample", MAX_BODY_BYTES),
        ("/api/v1/telemetry", MAX_BODY_BYTES),
        ("/nowhere", MAX_BODY_BYTES),
    ],
)
def test_a_body_that_is_too_large_is_refused_before_any_of_it_is_sent(
    served: Served, path: str, bound: int
):
    connection = connect(served, path, ("Content-Length", str(bound + 1)))
    answer = connection.getresponse()
    assert answer.status == 413
    assert f"larger than {bound} bytes" in json.loads(answer.read())["error"]
    connection.close()


def test_a_body_of_no_stated_length_is_cut_off_at_the_bound(served: Served):
    connection = connect(served, "/api/v1/create_session", ("Transfer-Encoding", "chunked"))
    chunk = b" " * (1 << 20)
    sent = 0
    try:
        while sent < 4 * MAX_BODY_BYTES:
            connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            sent += len(chunk)
    except OSError:
        pass  # the server has closed the connection, which is what it should
    assert sent < 4 * MAX_BODY_BYTES or connection.getresponse().status == 413
    connection.close()
    assert httpx.get(f"{served.base_url}/readyz").status_code == 200


def test_clients_are_told_of_smaller_requests_than_the_server_takes():
    assert CLIENT_CONFIG["fwdbwd_max_chunk_bytes_count"] < MAX_DATA_BYTES


@pytest.mark.parametrize(
    "key", [b"", b"tml-", KEY.encode() + b"x", KEY.encode()[:-1], b"\xff\xfe\x80", "ключ".encode()]
)
def test_every_other_key_is_refused_whatever_its_bytes(served: Served, key: bytes):
    for headers in ({b"X-API-Key": key}, {b"Authorization": (b"Bearer " + key).rstrip()}):
        answer = httpx.get(f"{served.base_url}/api/v1/training_runs", headers=headers)
        assert answer.status_code == 401
        assert "API key is missing or wrong" in answer.json()["error"]


def test_every_route_but_health_and_signed_downloads_demands_the_key(served: Served):
    from tests.fuzzing import routes_of

    public = {"/healthz", "/api/v1/healthz", "/readyz", "/files/{token}/{name}"}
    for route in routes_of(served.app):
        answer = httpx.request(route.method, served.base_url + route.path)
        assert (route.path, answer.status_code == 401) == (route.path, route.path not in public)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text() | st.sampled_from(["..", ".", "", "a/b", "/a", "a\\b", "a\x00", "a" * 201, "%2e"]))
def test_a_name_that_is_accepted_is_one_plain_folder_name(name: str):
    try:
        check_name(name)
    except TinsmithError:
        return
    assert Path("store", name).parts == ("store", name)
    assert name.isascii()
    assert not name.startswith(".")
    assert len(name.encode()) <= 200


NAMES_OUTSIDE = ("..", "../x", "%2e%2e", "..%2fconfig.json", "%2fetc%2fpasswd", "a%00b", "x" * 5000)


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_a_download_link_gives_the_files_of_its_checkpoint_and_no_others(served: Served, name: str):
    with served.client() as service:
        trainer = service.create_lora_training_client("qwen3", rank=1).result()
        path = trainer.save_weights_external("a").result().path
        rest = tinker.RestClient(base_url=served.base_url, api_key=KEY)
        urls = rest.get_external_weights_urls(path).result().urls
    url = urls["adapter_config.json"]
    assert httpx.get(url).json()["r"] == 1
    host, folder = served.base_url.removeprefix("http://"), url.rsplit("/", 1)[0]
    connection = http.client.HTTPConnection(host, timeout=60)  # which sends the path as it stands
    connection.request("GET", f"{folder.removeprefix(served.base_url)}/{name}")
    answer = connection.getresponse()
    assert answer.status in (401, 404)  # 401 where it is no path below /files
    assert json.loads(answer.read())["error"]
    connection.close()


UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def test_the_server_unpickles_nothing_and_runs_no_code_that_it_was_sent():
    for path in sorted((ROOT / "tinsmith" / "backend").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            else:
                names = set()
            assert not names & UNSAFE_MODULES, where
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in UNSAFE_CALLS, where
                assert called != "torch.load", f"{where}: weights are read from safetensors"
                assert "allow_pickle" not in {word.arg for word in node.keywords}, where
