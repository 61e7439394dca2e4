"""Which checkpoints of a stage are kept, and what happens to what a cut-off stage left."""

from typing import Annotated, Literal

from pydantic import Field

from tinsmith.config.sections import Section

Existing = Literal["resume", "delete", "raise", "ask"]


class Checkpoints(Section):
    """How many of the periodic checkpoints are kept, whether the best by validation is, and what to
    do with the working folder of a stage that was cut off."""

    keep_last: Annotated[int, Field(ge=0)] | Literal["all"] = 1
    keep_best: bool = True
    existing: Existing = "resume"
