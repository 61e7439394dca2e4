"""A vLLM engine's process as its server sees it, played by programs that do what engines do when
they fail; real engines are in tests/contract/test_vllm.py."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.engine_programs import READY, launch_of_program
from tinsmith.backend.vllm_sampler.launch import advice
from tinsmith.backend.vllm_sampler.process import WORKER, VllmProcess, last_words


def start(folder: Path, program: str, stuck_s: float = 60.0) -> VllmProcess:
    """A process of `program`, which is called as the engine is."""
    return VllmProcess(launch_of_program(folder, program), lambda: None, stuck_s)


def test_an_engine_that_does_not_start_leaves_its_last_words(tmp_path: Path):
    process = start(tmp_path, 'print("loading"); raise ValueError("no such model")')
    event = process.wait()
    assert event == {"event": "died", "code": 1}
    assert process.last_words() == "ValueError: no such model"
    process.stop()


def test_a_silent_engine_is_killed_only_if_it_has_something_to_do(tmp_path: Path):
    process = start(tmp_path, READY + "time.sleep(1000)", stuck_s=1.0)
    assert process.wait()["event"] == "ready"
    threading.Event().wait(2.5)
    assert not process.has_events, "an idle engine says nothing, and need not"
    process.expect_answers(True)
    assert process.wait() == {"event": "died", "code": -9}
    process.stop()


def test_a_busy_engine_that_shows_signs_of_life_is_left_alone(tmp_path: Path):
    alive = "[(say(event='alive'), time.sleep(0.2)) for _ in range(15)]; say(event='finished')"
    process = start(tmp_path, READY + alive, stuck_s=1.0)
    process.expect_answers(True)
    assert [process.wait()["event"] for _ in range(3)] == ["ready", "finished", "died"]
    process.stop()


def test_orders_larger_than_the_sockets_buffer_arrive_whole(tmp_path: Path):
    program = READY + "[say(event='got', size=len(channel.readline())) for _ in range(2)]"
    process = start(tmp_path, program)
    for size in (5_000_000, 10):
        process.say({"prompt": "x" * size})
    sizes = [event.get("size") for event in (process.wait() for _ in range(3))]
    assert sizes == [None, 5_000_000 + len('{"prompt":""}\n'), 10 + len('{"prompt":""}\n')]
    process.stop()


def test_orders_to_a_dead_engine_are_dropped(tmp_path: Path):
    process = start(tmp_path, "")
    assert process.wait()["event"] == "died"
    process.say({"do": "sample"})
    process.stop()


def test_an_engine_ends_when_its_server_is_gone():
    """The engine's own end of the channel, which needs no vLLM: its server may be killed."""
    ours, theirs = socket.socketpair()
    program = f"import sys, time; sys.path.insert(0, {str(WORKER)!r}); import channel\n"
    program += f"channel.Channel({theirs.fileno()}); time.sleep(1000)"
    with theirs:
        child = subprocess.Popen([sys.executable, "-c", program], pass_fds=[theirs.fileno()])
    ours.close()
    assert child.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("ValueError: Free memory on device cuda:0 (9.1/80 GiB) on startup is less", "memory is"),
        ("ValueError: Available memory on node 0 (10.32/23.54 GiB) on kv cache allocation is less"
         " than requested memory for kv (900.0 GiB). Decrease --kv-cache-memory-bytes,"
         " VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory", "lower the variable VLLM_CPU_KVCACHE"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "vllm_max_loras"),
        ("ValueError: To serve at least one request with the models's max seq len (40960), 5.6 GiB"
         " KV cache is needed", "lower vllm_max_model_len"),
        ("RuntimeError: Failed to infer device type, please set the environment", "nvidia-smi"),
        ("RuntimeError: The NVIDIA driver on your system is too old", "driver's version"),
        ("ValueError: Model architectures ['X'] are not supported for now.", "transformers"),
        ("RuntimeError: Unsupported CPU attention configuration: head_dim=16", "transformers"),
        ("ModuleNotFoundError: No module named 'vllm'", "vllm_python must name"),
        ("KeyError: 'x'", "server's log"),
    ],
)  # fmt: skip
def test_what_to_change_follows_from_what_vllm_said(words: str, remedy: str):
    assert remedy in advice(words)


def test_the_last_words_are_the_last_error_if_there_is_one():
    lines = [
        "INFO start",
        "[rank0]:   ValueError: first",
        "huggingface_hub.errors.XError: second",
        "bye",
    ]
    assert last_words(lines) == "huggingface_hub.errors.XError: second"
    assert last_words(["INFO start", "Killed.", ""]) == "Killed"
    assert last_words([]) == "it said nothing"
