"""What becomes of memory that this process frees."""

import ctypes
import platform

# mallopt's numbers for what it sets (malloc.h).
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
LARGEST_KEPT_BYTES = 1 << 25  # the most that every glibc takes
MOST_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let freed blocks of up to 32 MiB be used again, and up to a gigabyte of them wait for that at
    the end of the heap, where glibc allocates; to be called before there are threads. Whether it
    does.

    By itself it gives the most of them back and has the kernel make, and clear, new ones: a
    hundredth of a training step on a CPU. And it keeps what is free for each thread apart, of which
    only one at a time needs any.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # First what may be refused: by the others glibc no longer adapts it.
    return bool(
        libc.mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        and libc.mallopt(TRIM_THRESHOLD, MOST_KEPT_BYTES)
        and libc.mallopt(ARENA_MAX, 1)
    )
