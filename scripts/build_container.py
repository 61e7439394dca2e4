"""Rule build_container: an Apptainer image from its definition (tinsmith/container.py)."""

import argparse
from pathlib import Path

from tinsmith.config import Container
from tinsmith.container import build_image
from tinsmith.job import job, settings_of
from tinsmith.metadata import git_commit


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(Container), required=True)
    parser.add_argument("--copied", type=Path, nargs="+", required=True)
    for name in ("definition", "image", "log", "metadata"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    with job(
        rule="build_container",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs={"definition": args.definition} | {file.name: file for file in args.copied},
        outputs={"image": args.image},
        seeds={},
    ):
        settings: Container = args.settings
        commit = git_commit() or "unknown"
        build_image(args.definition, args.image, commit, settings.base, settings.build_options)


if __name__ == "__main__":
    main()
