"""What TensorBoard, W&B and trackio have of a stage: `python read_trackers.py FOLDER [PROJECT]`.

It prints JSON, and runs in the environment of envs/trackers.txt. Each point is [step, value]; a
point that is there twice is told twice.
"""

import json
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

BLOCK_BYTES = 32768


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore
        EventAccumulator,
    )

    found = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False)
    found.Reload()
    return {
        tag: [[event.step, event.value] for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def wandb(folder):
    """The history of the offline runs, from the file that `wandb sync` sends: a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    curves = defaultdict(list)
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            items = [(i.key or i.nested_key[0], i.value_json)
                     for i in Record.FromString(data).history.item]  # fmt: skip
            point = {key: json.loads(value) for key, value in items}
            for name, value in point.items():
                if not name.startswith("_"):
                    curves[name].append([point["_step"], value])
    return curves


def log_records(data):
    position, parts = 7, []
    while position + 7 <= len(data):
        if (left := BLOCK_BYTES - position % BLOCK_BYTES) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        parts.append(data[position + 7 : position + 7 + size])
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def trackio(project):
    curves = {}
    for run in ask("list", "runs", "--project", project)["runs"]:
        named = ("--project", project, "--run", run)
        for metric in ask("list", "metrics", *named)["metrics"]:
            values = ask("get", "metric", *named, "--metric", metric)["values"]
            curves.setdefault(metric, []).extend([v["step"], v["value"]] for v in values)
    return curves


def ask(*words):
    command = [str(Path(sys.executable).with_name("trackio")), *words, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {"tensorboard": tensorboard(folder), "wandb": wandb(folder)}
    if len(sys.argv) > 2:
        found["trackio"] = trackio(sys.argv[2])
    print(json.dumps(found))
