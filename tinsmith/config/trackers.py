"""Where a stage's metrics go beside its metrics.jsonl, while it trains."""

from typing import Annotated, Literal

from pydantic import Field

from tinsmith.config.sections import Section, Text


class Wandb(Section):
    """Weights & Biases; its key comes from WANDB_API_KEY alone."""

    kind: Literal["wandb"]
    project: Text = "tinsmith"
    entity: Text | None = None
    mode: Literal["online", "offline"] = "online"


class TensorBoard(Section):
    """Event files beside the stage's metrics.jsonl."""

    kind: Literal["tensorboard"]


class Trackio(Section):
    """A trackio project on this machine."""

    kind: Literal["trackio"]
    project: Text = "tinsmith"


Tracker = Annotated[Wandb | TensorBoard | Trackio, Field(discriminator="kind")]
