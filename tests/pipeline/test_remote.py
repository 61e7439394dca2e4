"""Stages trained by a server that was started once: plain on this host, and behind TLS."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.workflow import Workflow
from tinsmith.checkpoints import weights_sha256
from tinsmith.errors import TinsmithError
from tinsmith.remote import check_remote, remote_service, sends_key_in_clear
from tinsmith.serving import Endpoint, local_server

TARGET = "results/seed=0/supervised/checkpoint.json"
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""


@pytest.fixture(scope="module")
def server(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A server of the model `qwen3`, as somebody else would have started it."""
    folder = tmp_path_factory.mktemp("remote")
    options = [f"--store={folder / 'store'}", "--threads=1"]
    with local_server({"qwen3": str(qwen3_dir)}, options, log=folder / "log") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def tls(server: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server behind nginx as docs/slurm.md sets it up: its address, and the
    certificate of its authority."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed; envs/install_debian.sh installs it")
    folder = tmp_path_factory.mktemp("tls")
    folder.chmod(0o755)
    make_certificates(folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    page = (Path(__file__).parents[2] / "docs/slurm.md").read_text()
    block = page[page.index("server {") : page.index("```", page.index("server {"))]
    block = block.replace("8443", str(port)).replace("http://127.0.0.1:8000", server.base_url)
    block = block.replace("/etc/ssl/", f"{folder}/")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, server=block))
    nginx = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"])
    try:
        yield f"https://127.0.0.1:{port}", folder / "ca.crt"
    finally:
        nginx.send_signal(signal.SIGTERM)
        nginx.wait(timeout=30)


def make_certificates(folder: Path) -> None:
    """An authority, ca.crt, and what it signs for this host: node.crt, node.key."""
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=test", "-keyout", "ca.key", "-out", "ca.crt"],
        [*new, "-subj", "/CN=localhost", "-keyout", "node.key", "-out", "node.csr"],
        ["openssl", "x509", "-req", "-in", "node.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
         "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "node.crt"],
    ):  # fmt: skip
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def config(model: Path, **backend: Any) -> dict[str, Any]:
    stage = {"kind": "supervised", "steps": 2, "batch_size": 8, "max_tokens": 4, "eval_problems": 4}
    return {
        "model": {"kind": "path", "path": str(model)},
        "backend": {"dtype": "float32"} | backend,
        "data": {"kind": "arithmetic", "digits": 1, "num_problems": 40, "held_out": 14},
        "task": {"kind": "arithmetic"},
        "lora": {"rank": 4},
        "stages": [stage],
        "evaluation": {"num_problems": 10},
    }


def test_a_server_behind_tls_gives_the_weights_that_a_jobs_own_server_gives(
    server: Endpoint, tls: tuple[str, Path], qwen3_dir: Path, tmp_path: Path
) -> None:
    url, certificate = tls
    for name in ("remote", "own"):
        (tmp_path / name).mkdir()
    values = config(qwen3_dir, kind="remote", url=url)
    workflow = Workflow(tmp_path / "remote", values, stand_ins=False)
    environment = {"TINKER_API_KEY": server.api_key, "SSL_CERT_FILE": str(certificate)}
    said = workflow.snakemake("--cores", "1", TARGET, **environment)
    assert said.code == 0, said.text
    assert not (workflow.folder / "store").exists()
    own = Workflow(tmp_path / "own", config(qwen3_dir), stand_ins=False)
    said = own.snakemake("--cores", "1", TARGET)
    assert said.code == 0, said.text
    weights = [w.folder / TARGET.replace("checkpoint.json", "weights") for w in (workflow, own)]
    assert len({weights_sha256(folder) for folder in weights}) == 1

    workflow.configure(config(qwen3_dir, kind="remote", url="http://elsewhere:1"))
    assert workflow.plan(TARGET).jobs <= {"check_setup"}


def test_the_key_is_required(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with pytest.raises(TinsmithError, match=r"TINKER_API_KEY must be set for .*'remote'"):
        check_remote(server.base_url)
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong")
    with pytest.raises(TinsmithError, match="does not take the key of TINKER_API_KEY"):
        check_remote(server.base_url)


def test_a_server_that_does_not_answer_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-test")
    with pytest.raises(TinsmithError, match=r"no server answers at backend.url http.*refused"):
        check_remote("http://127.0.0.1:1")


def test_a_model_that_the_server_does_not_have_is_said(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TINKER_BASE_URL", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.setenv("TINKER_API_KEY", server.api_key)
    said = "must serve 'llama' .* but it serves qwen3; start it with --model llama=DIRECTORY"
    with pytest.raises(TinsmithError, match=said), remote_service(server.base_url, "llama"):
        pass


def test_a_key_over_plain_http_is_only_for_this_host() -> None:
    assert sends_key_in_clear("http://node:8000")
    assert not sends_key_in_clear("https://node:8000")
    assert not sends_key_in_clear("http://127.0.0.1:8000")
