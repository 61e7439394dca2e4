"""Become another program, one that ends with the process that started it, however that ends.

    python tied.py PARENT COMMAND ...

PARENT is that process's id. Linux alone can do this (prctl); elsewhere the program lives on where
its parent is killed. Nothing else of Tinsmith is imported, so that it takes no time.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>; it stays over exec


def main() -> None:
    """Tie this process to its parent, and become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was killed before that
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
