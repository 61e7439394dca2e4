"""Rule inspect_stage: a stage, or the base, evaluated by Inspect AI (tinsmith/inspection/)."""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tinsmith.checkpoints import Checkpoint, explained
from tinsmith.child import run_child
from tinsmith.config import InspectSettings
from tinsmith.config.inspection import HELD_OUT
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json
from tinsmith.inspection.plan import ENVIRONMENT
from tinsmith.inspection.results import summarise
from tinsmith.job import add_resources, backend_of, job, settings_of
from tinsmith.job_server import connect_job
from tinsmith.metadata import JobRecord

# What Inspect takes the service for, whose address and key it finds in variables of that name.
SERVICE = "tinsmith"
MAX_CONNECTIONS = 64
MAX_RETRIES = 5


def main() -> None:
    """Parse the command line, run the task, and write inspect.json and Inspect's own log."""
    args = _parse()
    with job(
        rule="inspect_stage",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs={"heldout": args.heldout, "model": args.model, "pins": args.pins}
        | ({"checkpoint": args.checkpoint} if args.checkpoint else {})
        | {str(path): path for path in args.files},
        outputs={"result": args.result, "samples": args.samples},
        seeds={"run": args.settings.seed},
    ) as record:
        settings: InspectSettings = args.settings
        ENVIRONMENT.find_packages()
        log = _run_task(args, settings, record)
        task = settings.task
        write_json(args.samples, log)
        write_json(
            args.result,
            {
                "name": task.name,
                "task": task.task,
                "stage": settings.stage,
                "run": settings.run,
                "seed": settings.seed,
                "temperature": task.temperature,
                "max_tokens": task.max_tokens,
                "scores": summarise(log, settings.seed),
            },
        )


def _run_task(
    args: argparse.Namespace, settings: InspectSettings, record: JobRecord
) -> dict[str, Any]:
    """Inspect's log, after it has asked the server."""
    checkpoint = Checkpoint.read(args.checkpoint) if args.checkpoint else None
    model = checkpoint.checkpoints.sampler if checkpoint else settings.model_name
    said, server_log = args.log.with_suffix(".inspect.log"), args.log.with_suffix(".server.log")
    with tempfile.TemporaryDirectory(prefix="inspect-", ignore_cleanup_errors=True) as scratch:
        logs = Path(scratch) / "logs"
        with (
            connect_job(backend_of(args), args.model, settings.model_name, server_log, record),
            explained(f"evaluating {settings.stage}"),
        ):
            service = {
                f"{SERVICE.upper()}_BASE_URL": f"{os.environ['TINKER_BASE_URL'].rstrip('/')}/v1",
                f"{SERVICE.upper()}_API_KEY": os.environ["TINKER_API_KEY"],
                "XDG_DATA_HOME": scratch,
            }
            command = _command(settings, model, args.heldout, logs)
            run_child(command, os.environ | service, said, f"Inspect's task {settings.task.task}")
        return _read_log(logs, said)


def _command(settings: InspectSettings, model: str, heldout: Path, logs: Path) -> list[str]:
    task = settings.task
    command = [
        str(ENVIRONMENT.python),
        "-m",
        "inspect_ai",
        "eval",
        task.task,
        f"--model=openai-api/{SERVICE}/{model}",
    ]
    command += [f"--log-dir={logs}", "--log-format=json", "--display=plain"]
    command += [f"--temperature={task.temperature}", f"--max-tokens={task.max_tokens}"]
    command += [f"--seed={settings.seed}", f"--max-connections={MAX_CONNECTIONS}"]
    command.append(f"--max-retries={MAX_RETRIES}")  # else for ever, of a server that is gone
    if task.limit is not None:
        command.append(f"--limit={task.limit}")
    for name, value in task.arguments.items():
        named = str(heldout if value == HELD_OUT else value)
        # Inspect reads files from the folder of the task.
        command += ["-T", f"{name}={os.path.abspath(named) if os.path.isfile(named) else named}"]
    return command


def _read_log(folder: Path, said: Path) -> dict[str, Any]:
    found = sorted(folder.glob("*.json"))
    if len(found) != 1:
        raise TinsmithError(
            f"Inspect must leave one log, of one task, got {len(found)} (what it said: {said})"
        )
    return json.loads(found[0].read_text(encoding="utf-8"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(InspectSettings), required=True)
    add_resources(parser)
    for name in ("model", "heldout", "pins", "result", "samples", "log", "metadata"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, nargs="?", help="none for the base")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="of the task")
    return parser.parse_args()


if __name__ == "__main__":
    main()
