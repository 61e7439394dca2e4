"""make slurm-check: has this cluster what the jobs will ask for (tinsmith/slurm.py)?

    python -m scripts.check_slurm [--profile profiles/gh200] [--configfile configs/FILE.yaml]

A line for each thing that was looked at; exits with 1 if one is wrong. Nothing is submitted.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

from tinsmith.errors import TinsmithError
from tinsmith.plan import make_plan
from tinsmith.slurm import Profile, check_slurm


def main() -> int:
    """Parse the command line, look, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", type=Path, default=Path("profiles/slurm"))
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    args = parser.parse_args()
    try:
        plan = make_plan(SimpleNamespace(configfiles=[args.configfile], config={}))
        profile = Profile.read(args.profile)
    except TinsmithError as error:
        print(f"check_slurm: {error}", file=sys.stderr)
        return 2
    num_faults = 0
    for found in check_slurm(profile, plan, Path.cwd()):
        num_faults += found.fault is not None
        print(f"FAULT {found.subject}: {found.fault}" if found.fault else f"ok    {found.subject}")
    print("Nothing was submitted." if not num_faults else f"{num_faults} to be mended.")
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
