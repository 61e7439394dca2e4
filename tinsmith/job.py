"""The frame around every script: its log, how its errors are told, and its run_metadata.json."""

import logging
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from tinsmith.errors import TinsmithError
from tinsmith.files import write_json
from tinsmith.metadata import describe_run

logger = logging.getLogger(__name__)


@contextmanager
def job(
    *,
    rule: str,
    log: Path,
    metadata: Path,
    settings: Any,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    seeds: Mapping[str, int],
) -> Iterator[None]:
    """Run the block as one job of `rule`; record it when it ends well, exit non-zero when not."""
    _log_to(log)
    signal.signal(signal.SIGTERM, _terminate)
    started = datetime.now(UTC)
    try:
        yield
        record = describe_run(
            rule=rule,
            settings=settings,
            inputs=inputs,
            outputs=outputs,
            seeds=seeds,
            started=started,
        )
        write_json(metadata, record)
    except TinsmithError as error:
        logger.error("%s: %s", rule, error)
        sys.exit(2)
    except Exception as error:
        logger.debug("%s failed", rule, exc_info=True)
        kind = type(error).__name__
        logger.error("%s: unexpected %s: %s (traceback in %s)", rule, kind, error, log)
        sys.exit(1)


def _log_to(log: Path) -> None:
    """Everything that matters goes to `log` with its time, and to the terminal without."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(log, mode="w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[file, terminal], force=True)
    logging.captureWarnings(True)
    for ours in ("tinsmith", "scripts", "__main__"):
        logging.getLogger(ours).setLevel(logging.DEBUG)


def _terminate(signum: int, frame: object) -> NoReturn:
    """End by an exception, so that open servers are stopped and drafts removed."""
    raise SystemExit(128 + signum)
