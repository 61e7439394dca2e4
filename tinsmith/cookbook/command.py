"""The command line of a recipe: what the config says, and what Tinsmith gives itself."""

from collections.abc import Mapping
from pathlib import Path

from tinsmith.checkpoints import Checkpoint
from tinsmith.config import CookbookSettings
from tinsmith.config.cookbook import MODEL_NAME, REFERENCE
from tinsmith.cookbook.recipes import LOADS, RANK, Recipe, check_arguments

LAUNCHER = Path(__file__).with_name("launcher.py")


def recipe_arguments(
    recipe: Recipe,
    settings: CookbookSettings,
    previous: Checkpoint | None,
    earlier: Mapping[str, Checkpoint],
    log_path: Path,
) -> list[str]:
    """key=value for each argument, the items of a list parted by commas, as chz reads lists and
    tuples; whatever the recipe cannot take is refused.

    `previous` is the checkpoint to start from, if any; `earlier` are those of the stages that the
    arguments name.
    """
    check_arguments(recipe, settings.stage, settings.lora.rank, previous is not None)
    given: dict[str, object] = {
        "model_name": settings.model_name,
        "base_model": settings.model_name,
        "log_path": log_path,
        RANK: settings.lora.rank,
        "seed": settings.seed,
        "behavior_if_log_dir_exists": "resume",
    }
    if previous is not None:
        given[LOADS] = previous.checkpoints.state
    values = {name: value for name, value in given.items() if recipe.takes(name)}
    for name, value in settings.stage.arguments.items():
        values[name] = _resolved(value, settings.model_name, earlier)
    return [f"{name}={value}" for name, value in values.items()]


def _resolved(value: object, model_name: str, earlier: Mapping[str, Checkpoint]) -> object:
    """What stands for an earlier checkpoint or the model's name, replaced."""
    if isinstance(value, list):
        return ",".join(str(_resolved(item, model_name, earlier)) for item in value)
    if value == MODEL_NAME:
        return model_name
    if isinstance(value, str) and (match := REFERENCE.fullmatch(value)):
        return getattr(earlier[match[1]].checkpoints, match[2])
    return value
