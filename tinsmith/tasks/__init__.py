"""Tasks: what is asked, and what a completion earns. The registry is explicit."""

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.arithmetic import Arithmetic
from tinsmith.tasks.constrained import Constrained
from tinsmith.tasks.math import Math
from tinsmith.tasks.qa import Qa
from tinsmith.tasks.summary import Summary
from tinsmith.tasks.task import Task
from tinsmith.tasks.trial import try_problems
from tinsmith.user_code import make_object

TASKS = {
    "arithmetic": Arithmetic,
    "qa": Qa,
    "math": Math,
    "summary": Summary,
    "constrained": Constrained,
}


def make_task(section: config.Task, chat: Chat) -> Task:
    """The task that a config section describes, for one model's chat format."""
    if isinstance(section, config.UserClass):
        return make_object(section, Task, "task", chat)
    return TASKS[section.kind](chat, section)  # pyright: ignore[reportArgumentType]


__all__ = ["TASKS", "Task", "make_task", "try_problems"]
