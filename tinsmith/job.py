"""The frame around every script: its log, how its errors are told, and its run_metadata.json."""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, TypeVar

import psutil

from tinsmith.config import Backend, Section, check_section
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json
from tinsmith.metadata import JobRecord, describe_run

logger = logging.getLogger(__name__)
_Settings = TypeVar("_Settings", bound=Section)


@contextmanager
def job(
    *,
    rule: str,
    log: Path,
    metadata: Path,
    settings: Section,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    seeds: Mapping[str, int],
) -> Iterator[JobRecord]:
    """Run the block as one job of `rule`; record it when it ends well, exit non-zero when not."""
    _log_to(log)
    signal.signal(signal.SIGTERM, _terminate)
    started = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
    found = JobRecord(set_up_s=(datetime.now(UTC) - started).total_seconds())
    try:
        yield found
        record = describe_run(
            rule=rule,
            settings=settings.model_dump(mode="json"),
            inputs=inputs,
            outputs=outputs,
            seeds=seeds,
            started=started,
            found=found,
        )
        write_json(metadata, record)
    except KeyboardInterrupt:
        logger.warning("%s: interrupted", rule)
        sys.exit(128 + signal.SIGINT)
    except TinsmithError as error:
        logger.error("%s: %s", rule, error)
        sys.exit(2)
    except Exception as error:
        logger.debug("%s failed", rule, exc_info=True)
        kind = type(error).__name__
        logger.error("%s: unexpected %s: %s (traceback in %s)", rule, kind, error, log)
        sys.exit(1)


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Options of the rules that run the model: how and where, which no result depends on."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="none is seen with 0 (default)")
    parser.add_argument("--url", nargs="?", help="of a running server, with backend.kind remote")


def backend_of(args: argparse.Namespace) -> Backend:
    """The backend of the job's settings, run as its command line says."""
    update = {"threads": args.threads, "gpus": args.gpus, "url": args.url or None}
    return args.settings.backend.model_copy(update=update)


def settings_of(section: type[_Settings], flag: str = "--settings") -> Callable[[str], _Settings]:
    """An argparse type: the JSON of `section`, checked like the config that it comes from."""

    def parse(text: str) -> _Settings:
        try:
            return check_section(section, json.loads(text), flag)
        except (TinsmithError, json.JSONDecodeError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


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
