"""What this machine computes with."""

import platform
from pathlib import Path


def processor() -> str:
    """The name of the CPU as it gives it itself, or else of its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
