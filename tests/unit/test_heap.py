"""Memory that a server frees is used again, and not asked for anew."""

import platform
import resource
import subprocess
import sys

import pytest

SIZE = 20_000_000  # bytes; of five such blocks glibc by itself keeps no more than three

# Allocates and frees five blocks in another thread, as a server does, and says how many pages of
# memory the kernel made for the last 20 of 21 times.
PROGRAM = """
import resource, sys, threading
from tinsmith.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

size = int(sys.argv[2])

def fill():
    for i in range(21):
        if i == 1:
            before = faults()
        blocks = [b"1" * size for _ in range(5)]
        del blocks
    print(faults() - before)

if sys.argv[1] == "keep":
    assert keep_freed_memory()
thread = threading.Thread(target=fill)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is not allocated by glibc")
def test_freed_blocks_are_used_again():
    def pages(how: str) -> int:
        command = [sys.executable, "-c", PROGRAM, how, str(SIZE)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    one_block = SIZE // resource.getpagesize()
    assert pages("keep") <= one_block
    assert pages("leave") >= 20 * 2 * one_block
