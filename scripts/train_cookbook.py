"""Rule train_cookbook: one stage that is a recipe of the tinker-cookbook (tinsmith/cookbook/)."""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import tinker

from tinsmith import progress
from tinsmith.chat import Chat
from tinsmith.checkpoints import Checkpoint, Paths, explained, fetch_weights
from tinsmith.child import run_child
from tinsmith.config import CookbookSettings
from tinsmith.cookbook.command import LAUNCHER, recipe_arguments
from tinsmith.cookbook.logs import (
    CHECKPOINTS,
    FINAL,
    Saved,
    find_log,
    last_checkpoint,
    read_metrics,
)
from tinsmith.cookbook.recipes import ENVIRONMENT, Recipe, find_recipe
from tinsmith.files import new_directory, sha256, write_text
from tinsmith.final_checkpoint import Example, write_final
from tinsmith.job import add_resources, backend_of, job, settings_of
from tinsmith.job_server import connect_job
from tinsmith.metadata import JobRecord

# What final_checkpoint_info.json asks and trains with where the config does not say.
QUESTION, DEFAULT_MAX_TOKENS, DEFAULT_RATE = "What is 3 + 4?", 512, 1e-4
OUTPUTS = ("checkpoint", "info", "saved", "metrics", "weights", "recipe")
logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line, run the recipe, and write what the rules after this one read."""
    args = _parse()
    with job(
        rule="train_cookbook",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs={"model": args.model, "pins": args.pins}
        | ({"previous": args.previous} if args.previous else {})
        | {str(path): path for path in (*args.checkpoints, *args.reads, *args.files)},
        outputs={name: getattr(args, name) for name in OUTPUTS},
        seeds={"run": args.settings.seed},
    ) as record:
        _train(args, args.settings, record)
    # Not before the job's record is written: what is killed until then goes on from here.
    shutil.rmtree(args.work)


def _train(args: argparse.Namespace, settings: CookbookSettings, record: JobRecord) -> None:
    recipe = find_recipe(settings.stage.recipe, ENVIRONMENT.find_packages())
    runs = _working_folder(args, settings, recipe)
    arguments = recipe_arguments(
        recipe,
        settings,
        Checkpoint.read(args.previous) if args.previous else None,
        {path.parent.name: Checkpoint.read(path) for path in args.checkpoints},
        runs / settings.stage.name,
    )
    logs = ((folder, log) for folder in args.reads for log in folder.rglob(CHECKPOINTS))
    read = {runs / log.parent.relative_to(folder) for folder, log in logs}
    backend, server_log = backend_of(args), args.log.with_suffix(".server.log")
    with (
        connect_job(backend, args.model, settings.model_name, server_log, record) as service,
        explained(f"training stage {settings.stage.name}"),
    ):
        said = args.log.with_suffix(".recipe.log")
        logger.info("recipe %s is running; what it says: %s", recipe.module, said)
        environment = os.environ | {"TINKER_COOKBOOK_RUNS_DIR": str(runs.resolve())}
        tokenizer = f"{settings.model_name}={args.model}"
        command = [str(ENVIRONMENT.python), str(LAUNCHER), tokenizer, recipe.module, *arguments]
        # What some recipes ask, when their log folder is there, is what to do with it.
        run_child(command, environment, said, f"recipe {recipe.module}", answer="resume\n")
        log = find_log(runs, read, settings.stage.recipe)
        _write_outputs(args, settings, service, log)


def _working_folder(args: argparse.Namespace, settings: CookbookSettings, recipe: Recipe) -> Path:
    """Where the recipe's logs lie, and those of the stages that it reads; emptied where they are of
    other inputs. The recipe itself goes on from what it finds."""
    files = [path for path in (args.previous, *args.checkpoints, *args.files) if path]
    told = progress.fingerprint(settings.model_dump_json(), [recipe.file, *files])
    print_of_inputs = "".join([told, *(sha256(folder) for folder in args.reads)])
    mark, runs = args.work / "inputs", args.work / "runs"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != print_of_inputs:
        shutil.rmtree(args.work, ignore_errors=True)
        runs.mkdir(parents=True)
        for folder in args.reads:
            shutil.copytree(folder, runs, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        write_text(mark, print_of_inputs)
    return runs


def _write_outputs(
    args: argparse.Namespace, settings: CookbookSettings, service: tinker.ServiceClient, log: Path
) -> None:
    """The stage's files, checkpoint.json last."""
    saved, rows = last_checkpoint(log), read_metrics(log)
    write_text(args.metrics, "".join(f"{json.dumps(row)}\n" for row in rows))
    with new_directory(args.recipe) as draft:
        place = draft / log.relative_to(args.work / "runs")
        shutil.copytree(log, place, dirs_exist_ok=True)
    client = service.create_training_client_from_state(saved.state).result()
    paths, info = _paths(client, saved), client.get_info()
    model_id = Saved(paths.state, paths.sampler).model_id
    digest = fetch_weights(client, FINAL, args.weights)
    checkpoint = Checkpoint(
        stage=settings.stage.name,
        run=settings.run,
        seed=settings.seed,
        base_model=settings.model_name,
        lora_rank=info.lora_rank or settings.lora.rank,
        model_id=model_id,
        step=int(rows[-1]["step"]) + 1 if rows else 0,
        checkpoints=paths,
        weights_sha256=digest,
    )
    final = progress.Saved(
        name=FINAL,
        kind="final",
        step=checkpoint.step,
        model_id=model_id,
        state=paths.state,
        sampler=paths.sampler,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        validation_accuracy=None,
    )
    example = _example(settings.stage.arguments, Chat.load(args.model))
    write_final(vars(args), checkpoint, [final], None, example, backend_of(args), args.model)


def _example(arguments: Mapping[str, object], chat: Chat) -> Example:
    """A question, since the recipe's own are its affair; the rate that it was trained with, if the
    config says so."""
    rate, most = arguments.get("learning_rate"), arguments.get("max_tokens")
    return Example(
        question=QUESTION,
        prompt=chat.prompt(QUESTION),
        system_prompt=None,
        max_tokens=most if isinstance(most, int) else DEFAULT_MAX_TOKENS,
        learning_rate=rate if isinstance(rate, float) else DEFAULT_RATE,
    )


def _paths(client: tinker.TrainingClient, saved: Saved) -> Paths:
    """The recipe's own; or saved anew, where its last are not to sample from or do not stay."""
    if saved.sampler is not None:
        return Paths(saved.state, saved.sampler)
    state, sampler = client.save_state(FINAL), client.save_weights_for_sampler(FINAL)
    return Paths(state.result().path, sampler.result().path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(CookbookSettings), required=True)
    add_resources(parser)
    for name in ("model", "pins", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--previous", type=Path, nargs="?", help="checkpoint.json, if any")
    add = parser.add_argument
    add("--checkpoints", type=Path, nargs="*", default=[], help="that the arguments name")
    add("--reads", type=Path, nargs="*", default=[], help="log folders of earlier stages")
    add("--files", type=Path, nargs="*", default=[], help="that the arguments name")
    for name in (*OUTPUTS, "log", "metadata"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
