"""A recipe of the tinker-cookbook as a stage."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tinsmith.config.sections import MODULE, Section, StageName

Argument = bool | int | float | str | list[bool | int | float | str] | None
# The arguments that Tinsmith gives itself, and which key says what they hold.
GIVEN = {
    "base_url": "the service is the config's `backend`",
    "log_path": "a stage's log lies in its working folder, and goes to its results",
    "model_name": "the model is the config's `model`",
    "base_model": "the model is the config's `model`",
    "load_checkpoint_path": "a stage starts from the one before (`start: previous`)",
    "lora_rank": "the rank is the config's `lora.rank`",
    "seed": "seeds are the config's `seeds`",
    "behavior_if_log_dir_exists": "a stage that was cut off goes on",
}
# In an argument, what stands for a checkpoint of an earlier stage, and for the model's name.
REFERENCE = re.compile(r"\{([a-z0-9_-]+)\.(state|sampler)\}")
MODEL_NAME = "{model}"


class Cookbook(Section):
    """A recipe, run as it is in an environment of its own, with its own `key=value` arguments.

    `start` is where it starts from: the stage before, or wherever the recipe itself says. `reads`
    are the stages whose log folders it finds beside its own.
    """

    kind: Literal["cookbook"]
    name: StageName = "cookbook"
    recipe: Annotated[str, Field(pattern=MODULE)]
    arguments: dict[str, Argument] = Field(default_factory=dict)
    start: Literal["previous", "recipe"] = "previous"
    reads: tuple[StageName, ...] = ()

    @model_validator(mode="after")
    def _leaves_what_tinsmith_gives(self) -> "Cookbook":
        for name in self.arguments:
            if name in GIVEN:
                raise ValueError(f"arguments.{name} must be left out: {GIVEN[name]}")
            if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
                raise ValueError(
                    f"arguments.{name} must be an argument's name, parts of it joined by dots"
                )
        for place, text in self.texts().items():
            if place not in self.arguments and "," in text:
                raise ValueError(
                    f"arguments.{place} must be without a comma, which parts the items of a list on"
                    f" a recipe's command line, got {text!r}"
                )
        return self

    def texts(self) -> dict[str, str]:
        """Every text among the arguments, those in lists too, by where it stands: key or key[i]."""
        found: dict[str, str] = {}
        for key, value in self.arguments.items():
            places = {key: value}
            if isinstance(value, list):
                places = {f"{key}[{index}]": item for index, item in enumerate(value)}
            found |= {place: text for place, text in places.items() if isinstance(text, str)}
        return found

    def references(self) -> dict[str, str]:
        """The stages that arguments name by {stage.state} or {stage.sampler}, by the place."""
        found = {place: REFERENCE.fullmatch(text) for place, text in self.texts().items()}
        return {place: match[1] for place, match in found.items() if match}
