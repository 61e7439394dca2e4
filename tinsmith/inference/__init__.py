"""Programs that ask a trained adapter, written to be run and changed by their reader."""

import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from tinsmith.chat import Chat
from tinsmith.config import Backend
from tinsmith.trained import TrainedStage

Through = Literal["peft", "tinker"]


def run_command(backend: Backend, name: str, model: Path, program: str) -> str:
    """How to run a Tinker program against the service that keeps a stage's checkpoints; the local
    one serves the folder `model` under `name`."""
    if backend.kind == "hosted":
        return f"TINKER_API_KEY=... python {program}"
    if backend.kind == "remote":
        return f"TINKER_BASE_URL={backend.url or '...'} TINKER_API_KEY=... python {program}"
    served, store = shlex.quote(f"{name}={model}"), shlex.quote(backend.store)
    return f"tinsmith run --model {served} --store {store} -- python {program}"


def script_command(stage: TrainedStage, through: Through, program: Path) -> str:
    """How to run what `inference_script` wrote to `program`, from any folder that it lies in."""
    file = shlex.quote(str(program))
    if through == "peft":
        return f"python {file}"
    backend = Backend.model_validate(stage.settings["backend"])
    backend = backend.model_copy(update={"store": str(Path(backend.store).resolve())})
    return run_command(backend, stage.checkpoint.base_model, stage.model_dir.resolve(), file)


def inference_script(stage: TrainedStage, base: str, through: Through, program: Path) -> str:
    """The text of a program that asks the stage's adapter as its task asked it.

    `base` is the base model's hub name or folder. `through` is peft, which loads the files here,
    or tinker, which asks the service that keeps the checkpoint. It will be the file `program`.
    """
    import jinja2

    folder = files(__name__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["literal"] = _literal
    task = stage.settings.get("task", {})  # a recipe that was not evaluated has none
    return environment.get_template(f"{through}.py.jinja").render(
        base=base if not Path(base).is_dir() else str(Path(base).resolve()),
        base_name=stage.checkpoint.base_model,
        adapter=str(stage.weights.resolve()),
        sampler=stage.checkpoint.checkpoints.sampler,
        run=stage.checkpoint.run,
        stage=stage.name,
        command=script_command(stage, through, Path(program.name)),
        system_prompt=task.get("system_prompt"),
        prompt_template=task.get("prompt_template", "{question}"),
        stop_token_ids=list(Chat.load(stage.model_dir).stop_token_ids),
        max_tokens=stage.settings["stage"].get("max_tokens", 512),
    )


def _literal(value: Any) -> str:
    """As a Python literal in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
