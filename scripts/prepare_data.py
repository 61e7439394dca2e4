"""Rule prepare_data: problems from a generator, a file or the hub (tinsmith/data.py)."""

import argparse
from pathlib import Path

from tinsmith.config import DataSettings, FileData
from tinsmith.data import prepare_data
from tinsmith.job import job, settings_of


def main() -> None:
    """Parse the command line and write both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(DataSettings), required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--stats", type=Path, required=True)
    parser.add_argument("--setup", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--metadata", type=Path, required=True)
    args = parser.parse_args()
    data = args.settings.data
    source = {"source": Path(data.path)} if isinstance(data, FileData) else {}
    with job(
        rule="prepare_data",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs={"setup": args.setup} | source,
        outputs={"train": args.train, "heldout": args.heldout, "stats": args.stats},
        seeds={"split": data.split_seed},
    ):
        prepare_data(data, args.train, args.heldout, args.stats)


if __name__ == "__main__":
    main()
