"""Tensors of the wire as arrays: dense ones, and sparse ones in compressed rows (CSR)."""

import math

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.errors import TinsmithError

DTYPES = {pb.DTYPE_FLOAT32: np.dtype(np.float32), pb.DTYPE_INT64: np.dtype(np.int64)}
# Of one tensor: a sparse one may say that it is far larger than the bytes that came.
MAX_ELEMENTS = 1 << 26


def decode_tensor(where: str, tensor: pb.Tensor) -> np.ndarray:
    """The finite tensor that a message holds, in the shape it names; a dense one without a shape
    has one dimension. What a sparse one does not list is zero."""
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise TinsmithError(f"{where}: dtype must be float32 or int64, got {tensor.dtype}")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise TinsmithError(
            f"{where}: must have at most {MAX_ELEMENTS} elements, got shape {list(shape)}"
        )
    if tensor.WhichOneof("encoding") == "sparse_csr":
        array = _decode_csr(where, tensor.sparse_csr, dtype, shape)
    else:
        array = decode_array(where, tensor.dense, dtype)
        if shape and math.prod(shape) != array.size:
            raise TinsmithError(
                f"{where}: shape {list(shape)} does not fit the {array.size} values that came"
            )
        array = array.reshape(shape or -1)
    _check_finite(where, array)
    return array


def decode_array(where: str, data: bytes, dtype: np.dtype) -> np.ndarray:
    """A flat array from its bytes."""
    if len(data) % dtype.itemsize:
        raise TinsmithError(f"{where}: {len(data)} bytes are not a whole number of {dtype} values")
    return np.frombuffer(data, dtype=dtype)


def _decode_csr(
    where: str, csr: pb.SparseCsr, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    if len(shape) != 2:
        raise TinsmithError(f"{where}: a sparse tensor must have 2 dimensions, got {list(shape)}")
    index = np.dtype(np.int64)
    values = decode_array(f"{where}.values", csr.values, dtype)
    starts = decode_array(f"{where}.crow_indices", csr.crow_indices, index)
    columns = decode_array(f"{where}.col_indices", csr.col_indices, index)
    counts = np.diff(starts)
    if not (
        len(starts) == shape[0] + 1
        and starts[0] == 0
        and (counts >= 0).all()
        and starts[-1] == len(values) == len(columns)
    ):
        raise TinsmithError(
            f"{where}: crow_indices must rise from 0 to the number of values ({len(values)}) over "
            f"{shape[0] + 1} entries, with a col_indices for every value (got {len(columns)})"
        )
    if ((columns < 0) | (columns >= shape[1])).any():
        raise TinsmithError(f"{where}: col_indices must be 0 to {shape[1] - 1}")
    rows = np.repeat(np.arange(shape[0]), counts)
    if (np.diff(rows * shape[1] + columns) <= 0).any():
        raise TinsmithError(f"{where}: col_indices must rise within each row")
    dense = np.zeros(shape, dtype)
    dense[rows, columns] = values
    return dense


def _check_finite(where: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        named = ", ".join(map(str, position))
        raise TinsmithError(
            f"{where}[{named}]: must be finite, got {array[position]}; nothing was accumulated"
        )
