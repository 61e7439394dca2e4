"""Stages trained by a server that somebody else started: behind TLS, in the place of the hosted
service, and by a recording of what a server of their own said."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.workflow import Workflow, workflow_environment
from tinsmith.checkpoints import weights_sha256
from tinsmith.errors import TinsmithError
from tinsmith.remote import check_hosted, check_remote, remote_service, sends_key_in_clear
from tinsmith.serving import Endpoint, local_server

STAGE = Path("results/seed=0/supervised")
TARGET = str(STAGE / "checkpoint.json")
HUB_NAME = "some/qwen3"
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
    """A server of one model by two names, as somebody else would have started it."""
    folder = tmp_path_factory.mktemp("remote")
    options = [f"--store={folder / 'store'}", "--threads=1"]
    models = {name: str(qwen3_dir) for name in ("qwen3", HUB_NAME)}
    with local_server(models, options, log=folder / "log") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def own(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A stage that a job's own server trained, which wrote down its traffic."""
    values = config(qwen3_dir, record="made/traffic.jsonl")
    workflow = Workflow(tmp_path_factory.mktemp("own"), values, stand_ins=False)
    said = workflow.snakemake("--cores", "1", TARGET)
    assert said.code == 0, said.text
    return workflow


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


def digest(workflow: Workflow) -> str:
    return weights_sha256(workflow.folder / STAGE / "weights")


def test_a_server_behind_tls_gives_the_weights_that_a_jobs_own_server_gives(
    server: Endpoint, tls: tuple[str, Path], own: Workflow, qwen3_dir: Path, tmp_path: Path
) -> None:
    url, certificate = tls
    values = config(qwen3_dir, kind="remote", url=url)
    workflow = Workflow(tmp_path, values, stand_ins=False)
    environment = {"TINKER_API_KEY": server.api_key, "SSL_CERT_FILE": str(certificate)}
    said = workflow.snakemake("--cores", "1", TARGET, **environment)
    assert said.code == 0, said.text
    assert not (workflow.folder / "store").exists()
    assert digest(workflow) == digest(own)

    workflow.configure(config(qwen3_dir, kind="remote", url="http://elsewhere:1"))
    assert workflow.plan(TARGET).jobs <= {"check_setup"}


def test_the_hosted_service_is_the_one_that_the_sdk_is_pointed_at_and_wants_its_key(
    server: Endpoint, own: Workflow, qwen3_dir: Path, tmp_path: Path
) -> None:
    """A local server in its place, with a model that is on the disk already; the job has no server
    of its own."""
    values = config(qwen3_dir, kind="hosted")
    values["model"] = {"kind": "hub", "name": HUB_NAME, "revision": "0" * 40}
    workflow = Workflow(tmp_path, values, stand_ins=False)
    shutil.copytree(qwen3_dir, tmp_path / "models/some__qwen3")
    without_model = (
        "--cores",
        "1",
        "--allowed-rules",
        "check_setup",
        "prepare_data",
        "train_stage",
    )
    said = workflow.snakemake(*without_model, "--", TARGET)
    assert said.code != 0
    assert "TINKER_API_KEY must be set for backend.kind 'hosted'" in said.text
    assert not (tmp_path / "data").exists()

    said = workflow.snakemake(*without_model, "--", TARGET, **server.environment())
    assert said.code == 0, said.text
    assert not (tmp_path / "store").exists()
    assert digest(workflow) == digest(own)
    recorded = (tmp_path / STAGE / "run_metadata.json").read_text()
    assert json.loads(recorded)["environment"]["TINKER_API_KEY"] == "***"
    assert server.api_key not in recorded


def test_a_recording_of_a_stage_trains_it_again_without_a_model(
    own: Workflow, tmp_path: Path
) -> None:
    """The program of the stage, pointed at a replay, to the download of its weights, which no
    recording holds."""
    command = shlex.split(
        json.loads((own.folder / STAGE / "run_metadata.json").read_text())["command"]
    )
    settings = json.loads(command[command.index("--settings") + 1])
    settings["backend"] |= {"kind": "hosted", "record": None}
    command[command.index("--settings") + 1] = json.dumps(settings)
    command[command.index("--work") + 1] = str(tmp_path)
    recording = own.folder / "made/traffic.jsonl"
    with local_server({}, [f"--replay={recording}"]) as replay:
        done = subprocess.run(
            command, cwd=own.folder, env=workflow_environment() | replay.environment(),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "fetching the weights file" in done.stderr
    for step in sorted((own.folder / STAGE / "steps").glob("*.json")):
        again = json.loads((tmp_path / "steps" / step.name).read_text())
        first = json.loads(step.read_text())
        assert again["samples"] == first["samples"]
        assert again["metrics"]["loss"] == first["metrics"]["loss"]


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
    said = r"must serve .llama. .*it serves qwen3, some/qwen3; start it with --model llama=DIREC"
    with pytest.raises(TinsmithError, match=said), remote_service(server.base_url, "llama"):
        pass


def test_a_model_that_the_hosted_service_does_not_offer_is_said_before_any_work(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in server.environment().items():
        monkeypatch.setenv(variable, value)
    check_hosted([HUB_NAME])
    said = "must offer 'some/qwen4' .*, and does not; did you mean 'some/qwen3'"
    with pytest.raises(TinsmithError, match=said):
        check_hosted([HUB_NAME, "some/qwen4"])
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong")
    with pytest.raises(TinsmithError, match=r"cannot be used: .*; check TINKER_API_KEY"):
        check_hosted([HUB_NAME])


def test_a_hosted_service_that_does_not_answer_is_said_before_the_sdk_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client alone, made where nobody listens, tries for minutes."""
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TINKER_API_KEY", "tml-test")
    monkeypatch.setattr("tinsmith.remote.HOSTED_TIMEOUT_S", 1)
    with pytest.raises(TinsmithError, match="cannot be used: it does not answer; check TINKER_API"):
        check_hosted(())


def test_a_key_over_plain_http_is_only_for_this_host() -> None:
    assert sends_key_in_clear("http://node:8000")
    assert not sends_key_in_clear("https://node:8000")
    assert not sends_key_in_clear("http://127.0.0.1:8000")
