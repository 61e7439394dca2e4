"""`tinsmith serve` and `tinsmith run` start, speak, stop, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import tinker
from tinker import types

from tests.clients import Params
from tinsmith.backend.sampling.snapshots import MAX_IN_MEMORY

TINSMITH = [sys.executable, "-m", "tinsmith.cli"]
KEY = "tml-secret-of-this-test"


@pytest.fixture
def options(qwen3_dir: Path, tmp_path: Path) -> list[str]:
    return [f"--model=qwen3={qwen3_dir}", f"--store={tmp_path / 'store'}", "--threads=1"]


@contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*TINSMITH, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Tinsmith serves"):
            return line
    raise AssertionError("the server ended before it was ready")


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


PROGRAM = """
import os, tinker
from tinker import types
service = tinker.ServiceClient()
trainer = service.create_lora_training_client("qwen3", rank=2).result()
datum = types.Datum(model_input=types.ModelInput.from_ints([5, 6, 7]),
                    loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [1.0, 1.0, 1.0]})
trainer.forward_backward([datum], "cross_entropy").result()
trainer.optim_step(types.AdamParams(learning_rate=1e-3)).result()
sampler = trainer.save_weights_and_get_sampling_client().result()
answer = sampler.sample(types.ModelInput.from_ints([5]), num_samples=2,
                        sampling_params=types.SamplingParams(max_tokens=3, stop=[])).result()
for name in "TINKER_BASE_URL TINKER_API_KEY NO_PROXY no_proxy USE_TF".split():
    print(os.environ[name])
print([len(s.tokens) for s in answer.sequences], flush=True)
os._exit(7)
"""


def test_run_serves_a_program_behind_a_proxy_that_leads_nowhere_and_passes_on_its_exit_code(
    options: list[str],
):
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [*TINSMITH, "run", *options, "--", sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, timeout=200,
        env=os.environ | proxies | {"NO_PROXY": "example.org", "no_proxy": "", "USE_TF": "1"},
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    url, key, *no_proxy, use_tf, lengths = done.stdout.splitlines()
    assert url.startswith("http://127.0.0.1:")
    assert key.startswith("tml-")
    assert no_proxy == ["example.org,127.0.0.1,localhost,::1"] * 2
    assert use_tf == "1", "what Tinsmith sets for itself is not for the program"
    assert lengths == "[3, 3]"
    assert key not in done.stderr


def test_a_killed_run_leaves_no_server_behind(options: list[str]):
    sleep = "import time; print('sleeping', flush=True); time.sleep(600)"
    with started("run", *options, "--", sys.executable, "-c", sleep) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeping\n"
        children = psutil.Process(process.pid).children(recursive=True)
        servers = [child for child in children if "serve" in child.cmdline()]
        programs = [child for child in children if child not in servers]
        assert len(servers) == len(programs) == 1
        process.kill()
        process.wait()
        try:
            wait_until_gone(servers)
        finally:
            for program in programs:
                if program.is_running():
                    program.kill()


def test_sigterm_ends_the_program_and_the_server_of_a_run(options: list[str]):
    sleep = "import time; print('sleeping', flush=True); time.sleep(600)"
    with started("run", *options, "--", sys.executable, "-c", sleep) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeping\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        wait_until_gone(children)


def test_a_server_listens_on_loopback_keeps_its_key_and_stops_cleanly_at_work(
    options: list[str], tmp_path: Path
):
    with started("serve", *options, "--port=0", TINSMITH_API_KEY=KEY) as process:
        line = ready_line(process)
        assert "at http://127.0.0.1:" in line
        server = psutil.Process(process.pid)
        listening = [c.laddr.ip for c in server.net_connections() if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        assert not [word for word in server.cmdline() if KEY in word]
        service = tinker.ServiceClient(base_url=line.split()[-1], api_key=KEY)
        for _ in range(MAX_IN_MEMORY + 1):
            trainer = service.create_lora_training_client("qwen3", rank=1).result()
            sampler = trainer.save_weights_and_get_sampling_client().result()
        assert list((tmp_path / "store" / "snapshots").glob("*/*"))
        pending = sampler.sample(
            types.ModelInput.from_ints([5]),
            num_samples=4000,
            sampling_params=Params(max_tokens=500, stop=[]),
        )
        time.sleep(0.5)
        process.terminate()
        with pytest.raises(tinker.RequestFailedError, match="the server was stopped"):
            pending.result(timeout=60)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0
    assert not list((tmp_path / "store" / "snapshots").glob("*/*"))
    assert "Traceback" not in errors
    assert KEY not in line + output + errors


def test_a_generated_key_is_printed_once_and_works(options: list[str]):
    with started("serve", *options, "--port=0") as process:
        assert process.stdout is not None
        name, _, key = process.stdout.readline().strip().partition("=")
        assert name == "TINKER_API_KEY"
        address = ready_line(process).split()[-1]
        models = tinker.RestClient(base_url=address, api_key=key).get_server_capabilities()
        assert [m.model_name for m in models.result().supported_models] == ["qwen3"]
        process.terminate()
        output, errors = process.communicate(timeout=60)
        assert key not in output + errors


def test_a_port_in_use_is_said_in_one_paragraph(options: list[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*TINSMITH, "serve", *options, f"--port={port}"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"tinsmith serve: cannot listen on 127.0.0.1:{port}: Address already in use; choose "
        "another --port (0 takes a free one) or stop what uses it"
    )


def test_a_port_is_taken_before_the_models_are_loaded(tmp_path: Path):
    """Of two servers that start together one fails at once, not after a minute of loading."""
    from tinsmith.backend.listening import listening_socket
    from tinsmith.errors import TinsmithError
    from tinsmith.settings import ServerSettings

    with listening_socket(
        ServerSettings(models={}, store=str(tmp_path), api_key=KEY, port=0)
    ) as listener:
        settings = ServerSettings(
            models={}, store=str(tmp_path), api_key=KEY, port=listener.getsockname()[1]
        )
        with (
            pytest.raises(TinsmithError, match="Address already in use"),
            listening_socket(settings),
        ):
            pass
