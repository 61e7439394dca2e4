"""Rule export_run: the last stage's adapter and merged model, each checked (tinsmith/export.py)."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tinker

from tinsmith.chat import Chat
from tinsmith.checkpoints import Checkpoint, explained, weights_sha256
from tinsmith.config import ExportSettings
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json
from tinsmith.gpus import assigned_gpus
from tinsmith.imports import uncollected
from tinsmith.job import add_resources, backend_of, job, settings_of
from tinsmith.job_server import connect_job
from tinsmith.metadata import JobRecord
from tinsmith.model_card import adapter_card, base_reference, merged_card
from tinsmith.problems import read_problems
from tinsmith.runs import BASE
from tinsmith.tasks import make_task
from tinsmith.trained import read_evaluation, read_run

with uncollected():
    from tinsmith.export import (
        Precision,
        check_adapter,
        check_merged,
        compared_precision,
        tolerance,
        write_adapter,
        write_merged,
    )

NUM_PROMPTS = 16


def main() -> None:
    """Parse the command line, write both exports, load them again and compare."""
    args = _parse()
    inputs = ("model", "checkpoint", "weights", "heldout")
    outputs = ("adapter", "merged", "check")
    with (
        job(
            rule="export_run",
            log=args.log,
            metadata=args.metadata,
            settings=args.settings,
            inputs={name: getattr(args, name) for name in inputs}
            | {str(file): file for file in args.records},
            outputs={name: getattr(args, name) for name in outputs},
            seeds={"run": args.settings.seed},
        ) as record,
        assigned_gpus(args.gpus) as locks,
    ):
        settings: ExportSettings = args.settings
        checkpoint = Checkpoint.read(args.checkpoint)
        _check_digest(args.weights, checkpoint)
        precision = compared_precision(backend_of(args), settings.model_name)
        base = base_reference(settings.model_name, args.model)
        run = args.checkpoint.parent.parent
        story = read_run(run), base, read_evaluation(run / BASE)
        # Before the merge, which wants the memory of the server that this ends.
        sequences = _sequences(args, settings)
        expected = _backend_logprobs(args, checkpoint, sequences, locks, record)
        write_adapter(args.weights, args.adapter, base, adapter_card(*story))
        write_merged(args.model, args.adapter, args.merged, precision, merged_card(*story))
        write_json(args.check, _check(args, sequences, expected, precision))


def _check_digest(weights: Path, checkpoint: Checkpoint) -> None:
    found = weights_sha256(weights)
    if found != checkpoint.weights_sha256:
        raise TinsmithError(
            f"{weights} must hold the weights that checkpoint.json names, SHA-256"
            f" {checkpoint.weights_sha256}, got {found}"
        )


def _sequences(args: argparse.Namespace, settings: ExportSettings) -> list[tuple[int, ...]]:
    """Held-out prompts with their reference completions."""
    task = make_task(settings.task, Chat.load(args.model))
    problems = read_problems(args.heldout)[:NUM_PROMPTS]
    return [(*task.prompt(problem), *task.reference(problem)) for problem in problems]


def _backend_logprobs(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    sequences: list[tuple[int, ...]],
    locks: Sequence[int],
    record: JobRecord,
) -> list[list[float]]:
    """What the backend gives every token but the first. The models that are then compared want the
    server's memory, and are to have its GPUs, which one that other jobs share would keep."""
    server = backend_of(args), args.model, args.settings.model_name
    log = args.log.with_suffix(".server.log")
    with (
        connect_job(*server, log, record, is_last=True, gpu_locks=locks) as service,
        explained("asking the backend for log-probabilities"),
    ):
        path = checkpoint.checkpoints.sampler
        client = service.create_sampling_client(model_path=path).result()
        pending = [
            client.compute_logprobs(tinker.ModelInput.from_ints(list(tokens)))
            for tokens in sequences
        ]
        return [[p for p in future.result()[1:] if p is not None] for future in pending]


def _check(
    args: argparse.Namespace,
    sequences: list[tuple[int, ...]],
    expected: list[list[float]],
    precision: Precision,
) -> dict[str, Any]:
    adapter = check_adapter(args.model, args.adapter, sequences, expected, precision)
    merged = check_merged(args.merged, sequences, expected, precision)
    statistic, bound = tolerance(precision.dtype)
    return {
        "dtype": str(precision.dtype).removeprefix("torch."),
        "device": precision.device,
        "num_sequences": len(sequences),
        "num_tokens": sum(len(logprobs) for logprobs in expected),
        "bound_nats": {statistic: bound},
        "adapter_nats": asdict(adapter),
        "merged_nats": asdict(merged),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(ExportSettings), required=True)
    add_resources(parser)
    names = ("model", "checkpoint", "weights", "heldout", "adapter", "merged", "check")
    parser.add_argument("--records", type=Path, nargs="+", help="run_metadata and evaluations")
    for name in (*names, "log", "metadata"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
