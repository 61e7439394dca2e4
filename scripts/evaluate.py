"""Rule evaluate_stage: sample held-out problems, say how good they are (tinsmith/evaluation.py)."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinsmith.chat import Chat
from tinsmith.checkpoints import Checkpoint, explained
from tinsmith.config import EvaluateSettings
from tinsmith.evaluation import Row, paired_difference, read_rows, sample_heldout, summarise
from tinsmith.files import write_json, write_text
from tinsmith.frozen import FrozenModels
from tinsmith.job import add_resources, backend_of, job, settings_of
from tinsmith.job_server import connect_job
from tinsmith.metadata import JobRecord
from tinsmith.paradigms import make_paradigm
from tinsmith.problems import read_problems
from tinsmith.rollouts import Sampler
from tinsmith.tasks import make_task, try_problems


def main() -> None:
    """Parse the command line, sample, and write evaluation.json and samples.jsonl."""
    args = _parse()
    optional = {name: getattr(args, name) for name in ("checkpoint", "previous", "base")}
    inputs = {"heldout": args.heldout, "model": args.model}
    with job(
        rule="evaluate_stage",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs=inputs
        | {name: path for name, path in optional.items() if path}
        | {file.name: file for file in args.user_code},
        outputs={"evaluation": args.evaluation, "samples": args.samples},
        seeds={"run": args.settings.seed},
    ) as record:
        settings: EvaluateSettings = args.settings
        rows = _sample(args, settings, record)
        write_text(args.samples, "".join(f"{json.dumps(row)}\n" for row in rows))
        write_json(args.evaluation, _evaluation(args, settings, rows))


def _sample(args: argparse.Namespace, settings: EvaluateSettings, record: JobRecord) -> list[Row]:
    evaluation = settings.evaluation
    chat = Chat.load(args.model)
    task = make_task(settings.task, chat)
    problems = read_problems(args.heldout)
    try_problems(task, problems[: evaluation.num_problems])
    backend, server_log = backend_of(args), args.log.with_suffix(".server.log")
    with (
        connect_job(backend, args.model, settings.model_name, server_log, record) as service,
        explained(f"evaluating {settings.stage}"),
    ):
        frozen = FrozenModels(service, settings.model_name, chat)
        paradigm = make_paradigm(settings.paradigm, frozen)
        checkpoint = Checkpoint.read(args.checkpoint) if args.checkpoint else None
        client = frozen.client(checkpoint.checkpoints.sampler if checkpoint else None)
        sampler = Sampler(client, chat, evaluation.max_tokens, evaluation.temperature)
        return sample_heldout(evaluation, task, paradigm, sampler, problems, settings.seed)


def _evaluation(
    args: argparse.Namespace, settings: EvaluateSettings, rows: list[Row]
) -> dict[str, Any]:
    evaluation = settings.evaluation
    return {
        "stage": settings.stage,
        "run": settings.run,
        "seed": settings.seed,
        "temperature": evaluation.temperature,
        "max_tokens": evaluation.max_tokens,
        **summarise(rows, evaluation.pass_at_k, settings.seed),
        "difference_to_previous": _difference(rows, args.previous, settings.seed),
        "difference_to_base": _difference(rows, args.base, settings.seed),
    }


def _difference(rows: list[Row], earlier: Path | None, seed: int) -> dict[str, Any] | None:
    return asdict(paired_difference(rows, read_rows(earlier), seed)) if earlier else None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(EvaluateSettings), required=True)
    add_resources(parser)
    for name in ("model", "heldout", "evaluation", "samples", "log", "metadata"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, nargs="?", help="none for the base")
    parser.add_argument("--user-code", type=Path, nargs="*", default=[], help="task and paradigm")
    for name in ("previous", "base"):
        parser.add_argument(f"--{name}", type=Path, nargs="?", help="samples.jsonl to compare with")
    return parser.parse_args()


if __name__ == "__main__":
    main()
