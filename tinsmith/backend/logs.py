"""The server's log: one line an event, as text or JSON, on standard error, without secrets."""

import json
import logging
import re
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger
from transformers.utils.logging import disable_progress_bar

LogFormat = Literal["text", "json"]
# Keys of any Tinker service, also those that were sent here by mistake.
API_KEY = re.compile(r"\btml-[A-Za-z0-9_.~+/=-]+")
MASK = "tml-***"


def configure_logs(log_format: LogFormat, level: str, api_key: str) -> None:
    """Send the events of this process to standard error, those of libraries from info on."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _renderer(log_format),
                _Mask(api_key),
            ],
        )
    )
    logging.basicConfig(level=max(logging.INFO, _number(level)), handlers=[handler], force=True)
    logging.getLogger("tinsmith").setLevel(_number(level))
    logging.captureWarnings(True)
    if log_format == "json":
        disable_progress_bar()  # which is no line of a log


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _renderer(log_format: LogFormat) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(
        colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )


class _Mask:
    """Takes keys out of a finished line, wherever in it they stand."""

    def __init__(self, api_key: str) -> None:
        self._secrets = {api_key, json.dumps(api_key)[1:-1], repr(api_key)[1:-1]}

    def __call__(self, logger: WrappedLogger, name: str, line: EventDict | str) -> str:
        assert isinstance(line, str), "the mask comes after the renderer"
        for secret in self._secrets:
            line = line.replace(secret, MASK)
        return API_KEY.sub(MASK, line)
