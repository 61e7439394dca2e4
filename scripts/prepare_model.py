"""Rule prepare_model: the tiny model, or a snapshot of the hub (tinsmith/models.py)."""

import argparse
from pathlib import Path

from tinsmith.config import ModelSettings, TinyModel
from tinsmith.job import job, settings_of
from tinsmith.models import prepare_model


def main() -> None:
    """Parse the command line and put the model in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(ModelSettings), required=True)
    parser.add_argument("--model", type=Path, required=True, help="the directory to make")
    parser.add_argument("--download", type=Path, required=True, help="keeps a broken download")
    parser.add_argument("--setup", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--metadata", type=Path, required=True)
    args = parser.parse_args()
    settings = args.settings
    with job(
        rule="prepare_model",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs={"setup": args.setup},
        outputs={"model": args.model},
        seeds={"model": settings.model.seed} if isinstance(settings.model, TinyModel) else {},
    ):
        prepare_model(settings, args.model, args.download)


if __name__ == "__main__":
    main()
