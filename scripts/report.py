"""Rule write_report: results/report.html, one self-contained page (tinsmith/report/)."""

import argparse
from pathlib import Path

from tinsmith.config import ReportSettings
from tinsmith.job import job, settings_of
from tinsmith.report.page import write_report
from tinsmith.report.results import reported_files


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=settings_of(ReportSettings), required=True)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--metadata", type=Path, required=True)
    args = parser.parse_args()
    with job(
        rule="write_report",
        log=args.log,
        metadata=args.metadata,
        settings=args.settings,
        inputs=reported_files(args.settings),
        outputs={"page": args.page},
        seeds={},
    ):
        write_report(args.settings, args.page)


if __name__ == "__main__":
    main()
