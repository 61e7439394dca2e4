"""How every command of the benchmarks is run."""

import sys
from collections.abc import Callable

from tinsmith.errors import TinsmithError


def run(main: Callable[[], None]) -> None:
    """Call `main`; what a user can mend is printed without a traceback, and ends with code 2."""
    try:
        main()
    except TinsmithError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
