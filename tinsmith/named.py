"""The user's own files and classes that the config names, looked at before any job is planned."""

from pathlib import Path

from tinsmith.config import Config, FileData, PathModel, UserClass
from tinsmith.errors import TinsmithError
from tinsmith.models import check_model_directory
from tinsmith.user_code import load_class


def check_named(config: Config) -> None:
    """Refuse a model, a file of problems, an image or a class that is not there or is not right."""
    model, data, image = config.model, config.data, config.container.image
    if isinstance(model, PathModel):
        check_model_directory(Path(model.path))
    if isinstance(data, FileData) and not Path(data.path).is_file():
        raise TinsmithError(f"data.path must be a file, got {data.path!r}")
    if image is not None and not Path(image).is_file():
        raise TinsmithError(f"container.image must be a file, got {image!r}")
    _check_user_classes(config)


def _check_user_classes(config: Config) -> None:
    """Load the classes of the user's own that the config names; what they need is imported only
    where there are some."""
    if isinstance(config.task, UserClass):
        from tinsmith.tasks import Task

        load_class(config.task, Task, "task", None)
    if isinstance(config.paradigm, UserClass):
        from tinsmith.paradigms import check_paradigm

        check_paradigm(config.paradigm)
