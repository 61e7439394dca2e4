"""How much memory the keys and values of a batch may take."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig

from tinsmith.backend.model.base_model import BaseModel

CONTROL_GROUPS = Path("/sys/fs/cgroup")
# Files of a control group by version: its limit, what it uses, and the statistics with what the
# kernel would drop before it refuses memory (cached files).
FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
)


def max_tokens_kept(base: BaseModel) -> int:
    """Cached tokens that a batch may hold: a quarter of the device's free memory."""
    config = base.module.config.get_text_config()
    heads, head_dim = key_value_heads(config)
    bytes_per_token = 2 * config.num_hidden_layers * heads * head_dim * base.dtype.itemsize
    return max(base.context_length, free_device_bytes(base.device) // 4 // bytes_per_token)


def key_value_heads(config: PretrainedConfig) -> tuple[int, int]:
    """How many heads have keys of their own, and the width of each."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, head_dim


def free_device_bytes(device: torch.device) -> int:
    """What is free on a GPU, or in main memory for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_machine_bytes()


def free_machine_bytes() -> int:
    """What the machine, and the control groups around this process, leave of main memory."""
    membership = Path("/proc/self/cgroup")
    text = membership.read_text(encoding="utf-8") if membership.exists() else ""
    available = psutil.virtual_memory().available
    return min([available, *left_in_groups(CONTROL_GROUPS, text)])


def left_in_groups(root: Path, membership: str) -> Iterator[int]:
    """What each control group around a process leaves it, in bytes; a container or a SLURM job has
    one, of which the machine's own numbers say nothing.

    `membership` is the text of /proc/PID/cgroup: lines of id:controllers:path. Inside a container
    the path may not be visible; its group is then the root.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            for names in FILES:
                yield from _left_in_group(folder, *names)
            if folder == top:
                break


def _left_in_group(
    folder: Path, limit_file: str, used_file: str, statistics_file: str, cached_key: str
) -> Iterator[int]:
    try:
        limit, used = ((folder / name).read_text().strip() for name in (limit_file, used_file))
        statistics = (folder / statistics_file).read_text()
    except OSError:  # not a group of this version, or not ours to read
        return
    if limit == "max":
        return
    values = dict(line.split(maxsplit=1) for line in statistics.splitlines())
    yield max(0, int(limit) - int(used) + int(values.get(cached_key, 0)))
