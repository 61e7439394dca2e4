"""What a server is started with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The options of `tinsmith serve`, checked by its argument parser.

    `models` maps a served name to a directory or hub id. `token_budget` bounds the padded
    tokens of one training micro-batch and of one prefill; None chooses by the device. `threads`
    of None leaves torch's own number of CPU threads. `substitutes` maps losses without a published
    formula to those that stand in for them.
    """

    models: Mapping[str, str]
    store: Path
    api_key: str
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    dtype: str = "auto"
    lora_alpha: float = 32.0
    token_budget: int | None = None
    threads: int | None = None
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    substitutes: Mapping[str, str] = field(default_factory=dict)
