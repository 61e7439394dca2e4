"""What a machine's torch can do: driver, CUDA, memory; and the checks of a venv over it.

Run by the Python whose torch is meant, which may be older than Tinsmith's: the standard library and
that torch, if there is one, are all it imports. Used by scripts/gh200_setup_local_tinker.sh.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

GIB = 1 << 30
NODES = Path("/sys/devices/system/node")


def main() -> None:
    """Print what was found; with --check, end with an error where it will not do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="refuse a torch that will not do")
    parser.add_argument("--without-gpu", action="store_true", help="CUDA is not initialised")
    parser.add_argument("--system-torch", help="the folder of the torch that this one must be")
    parser.add_argument("--json", type=Path, help="write what was found, once it will do")
    args = parser.parse_args()
    gpu = found_gpu(_output_of("nvidia-smi", "-q"))
    torch = found_torch(starts_cuda=args.check and not args.without_gpu)
    found = {"gpu": gpu, "torch": torch, "memory": found_memory(gpu)}
    if args.check:
        refusal = refuse(torch, args.system_torch, needs_gpu=not args.without_gpu)
        if refusal:
            sys.exit(f"error: {refusal}")
    for line in described(found):
        print(line)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def found_gpu(listing: str) -> dict[str, Any] | None:
    """The first GPU of `nvidia-smi -q`, sizes in bytes; None without a driver."""
    if "Driver Version" not in listing:
        return None
    total = re.search(r"FB Memory Usage\s+Total\s+: (\d+) MiB", listing)
    return {
        "name": _field(listing, "Product Name"),
        "driver": _field(listing, "Driver Version"),
        "cuda": _field(listing, "CUDA Version"),
        "addressing_mode": _field(listing, "Addressing Mode"),
        "memory_bytes": int(total.group(1)) << 20 if total else 0,
        "count": len(re.findall(r"^GPU ", listing, re.MULTILINE)),
    }


def found_torch(*, starts_cuda: bool) -> dict[str, Any] | None:
    """This Python's torch: its folder, version and CUDA, and why CUDA does not start, if asked."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        import torch
    except Exception as error:  # a torch built for other libraries than these fails in many ways
        return {"error": f"{type(error).__name__}: {error}"}
    folder = os.path.dirname(os.path.realpath(torch.__file__))
    found = {"folder": folder, "version": str(torch.__version__), "cuda": torch.version.cuda}
    if starts_cuda and torch.version.cuda:
        try:
            torch.zeros(1, device="cuda")
        except Exception as error:  # likewise
            found["cuda_error"] = f"{type(error).__name__}: {error}"
    return found


def found_memory(gpu: dict[str, Any] | None, nodes: Path = NODES) -> dict[str, int]:
    """Bytes of CPU and GPU memory, and of the one address space of both (0: they have none).

    Where the addressing mode is ATS, the GPU's memory is a NUMA node without cores; it is not
    counted as the CPU's.
    """
    sizes = []
    for node in nodes.glob("node[0-9]*"):
        kib = re.search(r"MemTotal:\s+(\d+) kB", (node / "meminfo").read_text())
        if kib and (node / "cpulist").read_text().strip():
            sizes.append(int(kib.group(1)) * 1024)
    cpu = sum(sizes) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    of_gpu = gpu["memory_bytes"] if gpu else 0
    is_unified = gpu is not None and gpu["addressing_mode"] == "ATS"
    return {"cpu": cpu, "gpu": of_gpu, "unified": cpu + of_gpu if is_unified else 0}


def refuse(torch: dict[str, Any] | None, system_torch: str | None, *, needs_gpu: bool) -> str:
    """Why this torch will not do; empty if it will."""
    if torch is None:
        return f"{sys.executable} has no torch"
    if "error" in torch:
        return f"{sys.executable} cannot import its torch: {torch['error']}"
    said = f"torch {torch['version']} of {torch['folder']}"
    if system_torch and torch["folder"] != os.path.realpath(system_torch):
        return (
            f"pip replaced the system torch of {system_torch} by {said}; remove that one"
            f" ({sys.executable} -m pip uninstall torch) and run this again"
        )
    if not torch["cuda"]:
        return f"{said} is built for the CPU only, which would leave the GPU unused"
    if needs_gpu and "cuda_error" in torch:
        return f"CUDA {torch['cuda']} does not initialise with {said}: {torch['cuda_error']}"
    return ""


def described(found: dict[str, Any]) -> list[str]:
    """What was found, a line each."""
    gpu, torch, memory = found["gpu"], found["torch"], found["memory"]
    lines = [f"machine:        {platform.machine()}, {os.cpu_count()} cores"]
    lines.append(f"python:         {platform.python_version()} ({sys.executable})")
    if gpu:
        lines.append(f"driver:         {gpu['driver']}, for CUDA up to {gpu['cuda']}")
        lines.append(f"GPU:            {gpu['count']} x {gpu['name']}")
    else:
        lines.append("driver:         none (nvidia-smi shows no GPU)")
    if torch is None or "error" in torch:
        lines.append(f"torch:          {torch['error'] if torch else 'none'}")
    else:
        cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "the CPU only"
        lines.append(f"torch:          {torch['version']} for {cuda} ({torch['folder']})")
    lines.append(f"CPU memory:     {memory['cpu'] / GIB:.1f} GiB")
    lines.append(f"GPU memory:     {memory['gpu'] / GIB:.1f} GiB")
    unified = f"{memory['unified'] / GIB:.1f} GiB" if memory["unified"] else "none"
    lines.append(f"unified memory: {unified}")
    return lines


def _field(listing: str, name: str) -> str:
    found = re.search(rf"^\s*{name}\s+: (.+?)\s*$", listing, re.MULTILINE)
    return found.group(1) if found else "unknown"


def _output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode(errors="replace")


if __name__ == "__main__":
    main()
