"""Programs that ask a trained adapter, written to be run and changed by their reader."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from tinsmith.chat import Chat
from tinsmith.trained import TrainedStage

Through = Literal["peft", "tinker"]


def inference_script(stage: TrainedStage, base: str, through: Through) -> str:
    """The text of an inference.py that asks the stage's adapter as its task asked it.

    `base` is the base model's hub name or folder. `through` is peft, which loads the files here,
    or tinker, which asks the service that keeps the checkpoint.
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
        store=stage.settings["backend"].get("store", "store"),
        is_hosted=stage.settings["backend"]["kind"] == "hosted",
        system_prompt=task.get("system_prompt"),
        prompt_template=task.get("prompt_template", "{question}"),
        stop_token_ids=list(Chat.load(stage.model_dir).stop_token_ids),
        max_tokens=stage.settings["stage"].get("max_tokens", 512),
    )


def _literal(value: Any) -> str:
    """As a Python literal in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
