"""Attention of one new token a row on a CPU in float32, compiled when it is first needed.

PyTorch's own is made for many queries: for so few it takes twice the time, and it looks at as many
keys of every row as the longest has. The compiled function runs on the threads that PyTorch has
already, those of its OpenMP library: threads beside them, which numba would start, wait for each
other and take all that was won.
"""

import ctypes
import math
import os
from functools import cache
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

# Of PyTorch's builds for Linux. It runs a function in every thread of a team: GOMP_parallel(
# function, argument, number of threads, flags), by which GCC has its programs do so.
OPENMP = "libgomp.so.1"
# Sums may be taken in another order than written: one that a row's own length alone decides.
REORDERING = {"reassoc", "contract", "nsz", "arcp"}
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


def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attention [n, H, 1, V] of queries [n, H, 1, K] over the first `lengths` [n] of keys and
    values [n, H / G, T, K and V], or the last `window` of these; where there is `openmp`.

    A row's numbers depend, bit for bit, on nothing but its own: not on n, the lengths of others, T
    or the number of threads.
    """
    n, num_heads, _, dim = query.shape
    num_key_heads, capacity = keys.shape[1:3]
    query = query.contiguous()
    output = query.new_empty(n, num_heads, 1, values.shape[-1])
    threads = torch.get_num_threads()
    num_sharing = num_heads // num_key_heads
    scratch = query.new_empty(threads, num_sharing, capacity)
    factor = query.new_full((1,), dim**-0.5 if scaling is None else scaling)
    tensors = (query, keys, values, output, scratch, factor)
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors)
    assert lengths.is_contiguous()
    assert lengths.dtype == torch.int64
    numbers = (threads, n, num_key_heads, capacity, capacity if window is None else window)
    addresses = [tensor.data_ptr() for tensor in (lengths, *tensors)]
    argument = (ctypes.c_int64 * (len(numbers) + len(addresses)))(*numbers, *addresses)
    function = _compiled(num_sharing, dim, values.shape[-1])
    library = openmp()
    assert library is not None
    library.GOMP_parallel(
        ctypes.c_void_p(function.address), ctypes.byref(argument), ctypes.c_uint(threads), 0
    )
    return output


def _pointer_to(kind: types.Type) -> Any:
    """A function that compiled ones may call: a pointer to what stands at an address."""

    @intrinsic
    def pointer(_: Any, address: Any):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), generate

    return pointer


_floats, _integers = _pointer_to(types.float32), _pointer_to(types.int64)


@cache
def _compiled(num_sharing: int, dim: int, value_dim: int) -> Any:
    """For so many queries a key, and widths that the compiler knows."""
    array = numba.carray  # pyright: ignore[reportPrivateImportUsage]

    def share(argument):
        """What one thread does. Neighbouring tasks are of different rows, long and short."""
        threads, n, num_key_heads, capacity, window = array(argument, 5)
        addresses = array(argument, 12)[5:]
        lengths = array(_integers(addresses[0]), n)
        queries = array(_floats(addresses[1]), (n, num_key_heads, num_sharing, dim))
        keys = array(_floats(addresses[2]), (n, num_key_heads, capacity, dim))
        values = array(_floats(addresses[3]), (n, num_key_heads, capacity, value_dim))
        outputs = array(_floats(addresses[4]), (n, num_key_heads, num_sharing, value_dim))
        scratch = array(_floats(addresses[5]), (threads, num_sharing, capacity))
        scaling = array(_floats(addresses[6]), 1)[0]
        # The team may be smaller than asked for, by OMP_THREAD_LIMIT for one.
        thread, size, num_tasks = _thread_number(), _team_size(), n * num_key_heads
        weights = scratch[thread]
        for task in range(num_tasks * thread // size, num_tasks * (thread + 1) // size):
            row, head = task % n, task // n
            end = lengths[row]
            start = max(0, end - window)
            q, output = queries[row, head], outputs[row, head]
            k, v = keys[row, head, start:end], values[row, head, start:end]
            for t in range(end - start):
                for g in range(num_sharing):
                    score = np.float32(0)
                    for i in range(dim):
                        score += q[g, i] * k[t, i]
                    weights[g, t] = score * scaling
            for g in range(num_sharing):
                largest = np.float32(-np.inf)
                for t in range(end - start):
                    largest = max(largest, weights[g, t])
                total = np.float32(0)
                for t in range(end - start):
                    weights[g, t] = math.exp(weights[g, t] - largest)
                    total += weights[g, t]
                sums = np.zeros(value_dim, np.float32)
                for t in range(end - start):
                    weight = weights[g, t] / total
                    for i in range(value_dim):
                        sums[i] += weight * v[t, i]
                for i in range(value_dim):
                    output[g, i] = sums[i]

    signature = types.void(types.CPointer(types.int64))
    options: dict[str, Any] = {"fastmath": REORDERING, "error_model": "numpy"}
    try:
        return numba.cfunc(signature, cache=True, **options)(share)
    except RuntimeError:  # no folder to keep what was compiled in, as in a read-only container
        return numba.cfunc(signature, **options)(share)
