"""Evaluations by Inspect AI, beside the built-in one."""

from typing import Annotated

from pydantic import Field

from tinsmith.config.sections import INSPECT_TASK, Count, Section, StageName

Argument = bool | int | float | str
# In an argument, what stands for the file of the held-out problems.
HELD_OUT = "{heldout}"


class InspectTask(Section):
    """A task of Inspect AI, asked of the base and after every stage; `arguments` are the task's."""

    name: StageName
    task: Annotated[str, Field(pattern=INSPECT_TASK)]
    arguments: dict[str, Argument] = Field(default_factory=dict)
    limit: Count | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Count = 512
