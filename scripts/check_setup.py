"""Rule check_setup: what this machine lacks, said before any work starts (tinsmith/setup.py)."""

import argparse
import logging
from pathlib import Path

from tinsmith.config import SetupSettings
from tinsmith.files import write_json
from tinsmith.job import job, settings_of
from tinsmith.remote import sends_key_in_clear
from tinsmith.setup import check_setup, without_effect

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line, check, and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(SetupSettings), required=True)
    parser.add_argument("--gpus", type=int, default=0, help="what a training job asks for")
    parser.add_argument("--url", nargs="*", default=[], help="of servers that must answer")
    parser.add_argument("--pins", type=Path, required=True)
    parser.add_argument("--setup", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--metadata", type=Path, required=True)
    args = parser.parse_args()
    with job(
        rule="check_setup",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs={"pins": args.pins},
        outputs={"setup": args.setup},
        seeds={},
    ):
        for key, told in args.settings.settings.items():
            logger.info("%s = %s", key, told)
        found = check_setup(args.settings, args.gpus, args.url, args.pins)
        for name, versions in found["other_versions"].items():
            logger.warning(
                "%s is %s, pinned is %s", name, versions["installed"], versions["pinned"]
            )
        if found["is_gpu_idle"]:
            logger.warning("there is a GPU here, and the jobs ask for none (backend.gpus: 0)")
        for key in without_effect(args.settings):
            logger.warning("%s has no effect: it is not sent to the hosted service", key)
        for url in filter(sends_key_in_clear, args.url):
            logger.warning("the key and all data travel to %s unencrypted: use https", url)
        write_json(args.setup, found)


if __name__ == "__main__":
    main()
