"""Programs that are called as a vLLM engine is, and do what engines do when they fail or wait."""

import os
import sys
from pathlib import Path
from typing import Any

from tinsmith.backend.vllm_sampler.launch import Launch

READY = """
import json, os, socket, sys, time
channel = socket.socket(fileno=int(sys.argv[-1])).makefile("rwb")
settings = json.loads(channel.readline())
def say(**message):
    channel.write(json.dumps(message).encode() + b"\\n")
    channel.flush()
say(event="ready", vllm="0")
"""
# Writes down what it is told to do and ends a sample at once, with settings["scores"] as the
# log-probabilities of tokens 0 to 15; in its sleep it answers nothing.
OBEDIENT = (
    READY
    + """
asleep = False
with open(settings["orders"], "a", buffering=1) as orders:
    print("start", file=orders)
    for line in channel:
        order = json.loads(line)
        print(order["do"], file=orders)
        if order["do"] in ("sleep", "wake"):
            asleep = order["do"] == "sleep"
            if asleep:
                say(event="asleep")
        if order["do"] == "sample" and not asleep:
            for sample, _ in order["samples"]:
                say(event="finished", id=order["id"], sample=sample, tokens=[9], logprobs=[-1.0],
                    reason="length", top_ids=[list(range(16))], top_logprobs=[settings["scores"]])
"""
)


def launch_of_program(folder: Path, program: str, **engine: Any) -> Launch:
    """How an engine is started whose Python runs `program`."""
    python = folder / "python"
    python.write_text(f"#!{sys.executable}\n{program}")
    python.chmod(0o755)
    return Launch(python, os.environ, {"model": "m", **engine})
