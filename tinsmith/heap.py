"""What becomes of memory that this process frees."""

import ctypes
import platform

# mallopt's numbers for what it sets (malloc.h).
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
LARGEST_KEPT_BYTES = 1 << 28
MOST_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let blocks that are freed be used again, up to a gigabyte of them, where glibc allocates; to
    be called before there are threads. Whether it does.

    By itself it gives large ones back at once and has the kernel make, and clear, new ones: a
    hundredth of a training step on a CPU. And it keeps what is free for each thread apart, of which
    only one at a time needs any.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    values = {
        ARENA_MAX: 1,
        MMAP_THRESHOLD: LARGEST_KEPT_BYTES,
        TRIM_THRESHOLD: MOST_KEPT_BYTES,
    }
    return min(libc.mallopt(number, value) for number, value in values.items()) == 1
