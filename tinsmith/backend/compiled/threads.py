"""What functions need that numba compiles for a CPU and PyTorch's threads run.

They run on the threads that PyTorch has already, those of its OpenMP library: threads beside them,
which numba would start, wait for each other and take all that was won.
"""

import ctypes
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

# Of PyTorch's builds for Linux. It runs a function in every thread of a team: GOMP_parallel(
# function, argument, number of threads, flags), by which GCC has its programs do so.
OPENMP = "libgomp.so.1"
# Sums may be taken in another order than written: one that the number of terms alone decides.
REORDERING: dict[str, Any] = {
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}
array: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]
inlined: Any = numba.njit(forceinline=True, **REORDERING)
_thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
_team_size = types.ExternalFunction("omp_get_num_threads", types.int32())


@cache
def openmp() -> ctypes.CDLL | None:
    """PyTorch's OpenMP library; None where it is another one."""
    try:
        library = ctypes.CDLL(OPENMP, mode=getattr(os, "RTLD_NOLOAD", 0))
    except OSError:
        return None
    llvmlite.binding.load_library_permanently(OPENMP)  # which is found, since it is loaded
    return library


def runs_compiled(x: Tensor) -> bool:
    """Whether compiled functions take a tensor of this kind."""
    return runs_compiled_for(x.device.type, x.dtype)


def runs_compiled_for(device_type: str, dtype: torch.dtype) -> bool:
    """Whether they take tensors of a device and a dtype."""
    return device_type == "cpu" and dtype == torch.float32 and openmp() is not None


def compile_for_threads(function: Callable[[Any], None], *shape: int) -> Any:
    """A function of a pointer to int64, for `run_on_threads`; `shape` is what it is made for.

    It is kept on disk, where there is a folder for it, until its file or one of this folder
    changes: what it calls has to be in one of these, and be none of its closure. Each shape and CPU
    has files of its own, since numba has no lock: of two processes that write one, the other's code
    would be run.
    """
    cpu = llvmlite.binding.get_host_cpu_name()
    function.__qualname__ = "-".join(map(str, (function.__name__, *shape, cpu, _own_digest())))
    signature = types.void(types.CPointer(types.int64))
    try:
        return numba.cfunc(signature, cache=True, **REORDERING)(function)
    except (RuntimeError, OSError):  # no folder, as in a read-only container, or no room in it
        return numba.cfunc(signature, **REORDERING)(function)


@cache
def _own_digest() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def run_on_threads(function: Any, num_threads: int, numbers: Sequence[int]) -> None:
    """Call a compiled function in each of PyTorch's threads, with a pointer to `numbers`."""
    library = openmp()
    assert library is not None
    argument = (ctypes.c_int64 * len(numbers))(*numbers)
    library.GOMP_parallel(
        ctypes.c_void_p(function.address), ctypes.byref(argument), ctypes.c_uint(num_threads), 0
    )


def address(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Of a tensor's numbers, which lie in one piece."""
    assert tensor.is_contiguous()
    assert tensor.dtype == dtype
    return tensor.data_ptr()


@inlined
def own_share(num_tasks: Any) -> Any:
    """A thread's number, and where its part of some tasks begins and ends, in a function that
    `run_on_threads` calls. The team may be smaller than asked for, by OMP_THREAD_LIMIT for one."""
    thread, size = _thread_number(), _team_size()
    return thread, num_tasks * thread // size, num_tasks * (thread + 1) // size


def _pointer_to(kind: types.Type) -> Any:
    """A function that compiled ones may call: a pointer to what stands at an address."""

    @intrinsic
    def pointer(_: Any, address: Any):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), generate

    return pointer


floats, doubles, integers = map(_pointer_to, (types.float32, types.float64, types.int64))
