"""Rule train_stage: one training stage from the checkpoint before it (tinsmith/stages/)."""

import argparse
import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import tinker
from tqdm import tqdm

from tinsmith.chat import Chat
from tinsmith.checkpoints import (
    Checkpoint,
    Paths,
    explained,
    fetch_weights,
    open_training_client,
    resume_training_client,
)
from tinsmith.config import Checkpoints, MonitorSettings, TrackerSettings, TrainSettings
from tinsmith.files import new_directory
from tinsmith.final_checkpoint import best_of, example_of, write_final
from tinsmith.frozen import FrozenModels
from tinsmith.interruption import deferred_sigterm
from tinsmith.job import add_resources, backend_of, job, settings_of
from tinsmith.job_server import connect_job
from tinsmith.monitors import Watch
from tinsmith.objectives.learning_rate import resolve_learning_rate
from tinsmith.opponents import Snapshots, open_snapshots
from tinsmith.paradigms import make_paradigm, put_in_training
from tinsmith.problems import read_problems
from tinsmith.progress import Progress, Saved, begin, fingerprint
from tinsmith.saves import FINAL, Saves
from tinsmith.stages import STAGES, StageContext
from tinsmith.step_files import read_steps, write_metrics, write_step
from tinsmith.tasks import make_task, try_problems
from tinsmith.trackers import TrackedStage, check_trackers, open_trackers
from tinsmith.transcript import write_step_pages, write_transcript
from tinsmith.types import StepRecord

OUTPUTS = ("checkpoint", "info", "saved", "metrics", "steps", "transcript", "weights")
logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line, train, and write what the rules after this one read."""
    args = _parse()
    inputs = {"train": args.train, "heldout": args.heldout, "model": args.model}
    with job(
        rule="train_stage",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs=inputs
        | ({"previous": args.previous} if args.previous else {})
        | {file.name: file for file in args.user_code},
        outputs={name: getattr(args, name) for name in OUTPUTS},
        seeds={"run": args.settings.seed},
    ) as record:
        settings: TrainSettings = args.settings
        check_trackers(args.trackers.trackers)
        progress = begin(args.work, _fingerprint(args), args.checkpoints.existing)
        backend, server_log = backend_of(args), args.log.with_suffix(".server.log")
        with (
            deferred_sigterm() as is_told_to_stop,
            connect_job(backend, args.model, settings.model_name, server_log, record) as service,
            explained(f"training stage {settings.stage.name}"),
        ):
            _train(args, settings, service, progress, is_told_to_stop)
    # Not before the job's record is written: what is killed until then goes on from here.
    shutil.rmtree(args.work)


def _fingerprint(args: argparse.Namespace) -> str:
    files = [path for path in (args.train, args.heldout, args.previous) if path]
    return fingerprint(args.settings.model_dump_json(), [*files, *args.user_code])


def _train(
    args: argparse.Namespace,
    settings: TrainSettings,
    service: tinker.ServiceClient,
    progress: Progress,
    is_told_to_stop: Callable[[], bool],
) -> None:
    """Go on from the progress that there is, to the end of the stage or, told to stop, of a step:
    every attempt gets further. At the end, write the outputs."""
    previous = Checkpoint.read(args.previous) if args.previous else None
    training_client = _open(service, settings, progress, previous, args.work)
    chat = Chat.load(args.model)
    frozen = FrozenModels(service, settings.model_name, chat)
    saves = Saves(args.work, settings.stage, args.checkpoints, training_client, progress)
    snapshots = open_snapshots(settings, training_client, frozen, progress.snapshots)
    # A new adapter leaves the base model as it is.
    reference = partial(frozen.client, previous.checkpoints.sampler if previous else None)
    context = _context(args, settings, training_client, reference, frozen, snapshots)
    watch = Watch(args.monitors.monitors, settings.stage.name)
    done = [step["metrics"] for step in read_steps(args.work / "steps", progress.next_step)]
    for metrics in done:
        watch.recall(metrics)
    if snapshots and progress.next_step < settings.stage.steps:
        snapshots.take(progress.next_step)
    accuracy = None
    with open_trackers(args.trackers.trackers, _tracked(args, settings), done) as trackers:
        for record in _with_progress_bar(settings, context, progress.next_step):
            write_step(args.work / "steps", record, chat)
            trackers.log(record.step, record.metrics)
            accuracy = record.metrics.get("validation_accuracy")
            next_step, stops = record.step + 1, is_told_to_stop()
            if next_step < settings.stage.steps:
                kind = saves.kind_due(record.step, accuracy) or ("periodic" if stops else None)
                if kind is not None:
                    saves.save(kind, next_step, accuracy, snapshots.paths if snapshots else {})
            watch.look(record.step, record.metrics)
            if stops and next_step < settings.stage.steps:
                logger.warning("told to stop by SIGTERM: saved after step %d", record.step)
                raise SystemExit(128 + signal.SIGTERM)
            if snapshots and next_step < settings.stage.steps:
                snapshots.take(next_step)

    final = saves.final(accuracy)
    _write_outputs(args, settings, context, final, saves.saved)


def _tracked(args: argparse.Namespace, settings: TrainSettings) -> TrackedStage:
    return TrackedStage(
        run=settings.run,
        stage=settings.stage.name,
        settings=settings.model_dump(mode="json"),
        folder=args.metrics.parent,
        work=args.work,
        log=args.log,
    )


def _open(
    service: tinker.ServiceClient,
    settings: TrainSettings,
    progress: Progress,
    previous: Checkpoint | None,
    work: Path,
) -> tinker.TrainingClient:
    if progress.state is None:
        return open_training_client(
            service, settings.model_name, settings.lora, settings.seed, previous
        )
    logger.info("stage %s goes on at step %d", settings.stage.name, progress.next_step)
    return resume_training_client(service, progress.state, work)


def _context(
    args: argparse.Namespace,
    settings: TrainSettings,
    training_client: tinker.TrainingClient,
    reference_client: Callable[[], tinker.SamplingClient],
    frozen: FrozenModels,
    snapshots: Snapshots | None,
) -> StageContext:
    task = make_task(settings.task, frozen.chat)
    problems, heldout = read_problems(args.train), read_problems(args.heldout)
    try_problems(task, (*problems, *heldout))
    paradigm = make_paradigm(settings.paradigm, frozen)
    return StageContext(
        name=settings.stage.name,
        seed=settings.seed,
        learning_rate=resolve_learning_rate(settings.stage, args.model),
        training_client=training_client,
        reference_client=reference_client,
        task=task,
        paradigm=put_in_training(paradigm, snapshots),
        heldout_paradigm=paradigm,
        problems=problems,
        heldout=heldout,
    )


def _with_progress_bar(
    settings: TrainSettings, context: StageContext, first_step: int
) -> Iterator[StepRecord]:
    """The stage's records, as they come, with what they say on the terminal and in the log."""
    stage = settings.stage
    records = STAGES[stage.kind](stage, context, first_step)
    with tqdm(total=stage.steps, initial=first_step, desc=stage.name, unit="step") as bar:
        for record in records:
            metrics = record.metrics
            logger.debug("step %d: %s", record.step, dict(metrics))
            shown = ("reward_mean", "loss", "validation_accuracy")
            bar.set_postfix({name: f"{metrics[name]:.3f}" for name in shown if name in metrics})
            bar.update()
            yield record


def _write_outputs(
    args: argparse.Namespace,
    settings: TrainSettings,
    context: StageContext,
    final: Saved,
    saved: Sequence[Saved],
) -> None:
    """The stage's files, checkpoint.json last."""
    num_steps = settings.stage.steps
    steps = args.work / "steps"
    title = f"{settings.stage.name}, {settings.run}"
    with new_directory(args.steps) as draft:
        shutil.copytree(steps, draft, dirs_exist_ok=True)
        write_step_pages(draft, title, read_steps(steps, num_steps))
    write_metrics(args.metrics, steps, num_steps)
    write_transcript(args.transcript, title, read_steps(steps, num_steps), num_steps)
    digest = fetch_weights(context.training_client, FINAL, args.weights)
    info = context.training_client.get_info()
    checkpoint = Checkpoint(
        stage=settings.stage.name,
        run=settings.run,
        seed=settings.seed,
        base_model=settings.model_name,
        lora_rank=info.lora_rank or settings.lora.rank,
        model_id=final.model_id,
        step=num_steps,
        checkpoints=Paths(final.state, final.sampler),
        weights_sha256=digest,
    )
    best, example = best_of(saved, settings.stage.eval_problems), example_of(settings, context)
    write_final(vars(args), checkpoint, saved, best, example, backend_of(args), args.model)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(TrainSettings), required=True)
    parser.add_argument(
        "--monitors", type=settings_of(MonitorSettings, "--monitors"), default=MonitorSettings()
    )
    parser.add_argument(
        "--checkpoints", type=settings_of(Checkpoints, "--checkpoints"), default=Checkpoints()
    )
    parser.add_argument(
        "--trackers", type=settings_of(TrackerSettings, "--trackers"), default=TrackerSettings()
    )
    add_resources(parser)
    for name in ("model", "train", "heldout", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--previous", type=Path, nargs="?", help="checkpoint.json, if any")
    parser.add_argument("--user-code", type=Path, nargs="*", default=[], help="task and paradigm")
    for name in (*OUTPUTS, "log", "metadata"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
