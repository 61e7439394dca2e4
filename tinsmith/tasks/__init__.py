"""Tasks: what is asked, and what a completion earns. The registry is explicit."""

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.arithmetic import Arithmetic
from tinsmith.tasks.qa import Qa
from tinsmith.tasks.task import Task

TASKS = {"arithmetic": Arithmetic, "qa": Qa}


def make_task(section: config.Task, chat: Chat) -> Task:
    """The task that a config section describes, for one model's chat format."""
    return TASKS[section.kind].from_config(section, chat)  # pyright: ignore[reportArgumentType]


__all__ = ["TASKS", "Task", "make_task"]
