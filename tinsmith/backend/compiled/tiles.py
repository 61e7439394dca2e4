"""Matrix products of small matrices, for use inside compiled functions: one tile of the result at a
time, which stays in the processor's registers."""

from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from tinsmith.backend.compiled.threads import inlined

_FEATURES = get_host_cpu_features().split(",")
LANES = 16 if "+avx512f" in _FEATURES else 8 if "+avx2" in _FEATURES else 4
# Of a result: as many as there are registers for, beside those of the factors.
TILE_ROWS = 8 if LANES == 16 else 4
TILE_COLUMNS = 2 * LANES
FLOAT_BYTES = 4
LINE = 16  # floats of a line of the cache
BYTE = ir.IntType(8)
FUSED = ("contract",)  # a product and its sum are one operation


def whole_width(size: int) -> int:
    """As many columns or more, in whole tiles."""
    return -(-size // TILE_COLUMNS) * TILE_COLUMNS


def _tile(adds: bool) -> Any:
    """C [TILE_ROWS, TILE_COLUMNS] = A B, or added to C, of A [TILE_ROWS, depth] and B [depth,
    TILE_COLUMNS].

    Addresses of their first numbers and distances in numbers: between the rows of C, between rows
    and columns of A, and between the rows of B.
    """

    @intrinsic
    def tile(
        _: Any, c: Any, c_row: Any, a: Any, a_row: Any, a_column: Any, b: Any, b_row: Any,
        depth: Any,
    ):  # fmt: skip
        return types.void(*[types.int64] * 8), _generator(adds)

    return tile


def _fetching_tile(adds: bool) -> Any:
    """As `_tile`; meanwhile the processor reads the A of another one, so far behind this one."""

    @intrinsic
    def tile(
        _: Any, c: Any, c_row: Any, a: Any, a_row: Any, a_column: Any, b: Any, b_row: Any,
        depth: Any, ahead: Any,
    ):  # fmt: skip
        return types.void(*[types.int64] * 9), _generator(adds)

    return tile


def _generator(adds: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _generate(builder, adds, *arguments)
        return context.get_dummy_value()

    return generate


def _generate(
    builder: Any, adds: bool, c: Any, c_row: Any, a: Any, a_row: Any, a_column: Any, b: Any,
    b_row: Any, depth: Any, ahead: Any = None,
) -> None:  # fmt: skip
    number, vector = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)

    def place(kind: Any, base: Any, *steps: tuple[Any, Any]) -> Any:
        for count, distance in steps:
            in_bytes = builder.mul(builder.mul(count, distance), base.type(FLOAT_BYTES))
            base = builder.add(base, in_bytes)
        return builder.inttoptr(base, kind.as_pointer())

    def constant(value: int) -> Any:
        return c.type(value)

    one = constant(1)
    sums, places = {}, {}
    for m, n in product(range(TILE_ROWS), range(TILE_COLUMNS // LANES)):
        places[m, n] = place(vector, c, (constant(m), c_row), (constant(n * LANES), one))
        sums[m, n] = cgutils.alloca_once(builder, vector)
        builder.store(vector(None), sums[m, n])
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    with cgutils.for_range(builder, depth) as loop:
        k = loop.index
        if ahead is not None:
            # A number of each column, and so of each line of the cache: a row has one every
            # TILE_ROWS columns, or the rows of a column are in one line.
            some_row = builder.and_(k, constant(TILE_ROWS - 1))
            fetch(builder, place(BYTE, a, (one, ahead), (some_row, a_row), (k, a_column)))
        rows = [
            builder.load(
                place(vector, b, (k, b_row), (constant(n * LANES), one)), align=FLOAT_BYTES
            )
            for n in range(TILE_COLUMNS // LANES)
        ]
        for m in range(TILE_ROWS):
            factor = builder.load(place(number, a, (k, a_column), (constant(m), a_row)))
            undefined = ir.Constant(vector, ir.Undefined)
            single = builder.insert_element(undefined, factor, ir.IntType(32)(0))
            spread = builder.shuffle_vector(single, undefined, lanes)
            for n, row in enumerate(rows):
                term = builder.fmul(spread, row, flags=FUSED)
                total = builder.fadd(builder.load(sums[m, n]), term, flags=FUSED)
                builder.store(total, sums[m, n])
    for cell, at in places.items():
        total = builder.load(sums[cell])
        if adds:
            total = builder.fadd(total, builder.load(at, align=FLOAT_BYTES))
        builder.store(total, at, align=FLOAT_BYTES)


def fetch(builder: Any, address: Any) -> None:
    """Have the processor read what stands at a pointer to bytes into its cache; there may be
    nothing."""
    name, number = "llvm.prefetch.p0", ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    is_read, nearest, is_data = number(0), number(3), number(1)
    builder.call(function, [address, is_read, nearest, is_data])


written_tile, added_tile = _tile(False), _tile(True)
fetching_written_tile, fetching_added_tile = _fetching_tile(False), _fetching_tile(True)


@inlined
def multiply(c, c_row, a, a_row, a_column, b, b_row, rows, columns, depth):
    """C [rows, columns] = A B, with addresses and distances as of a tile; rows and columns are
    whole tiles."""
    for m in range(0, rows, TILE_ROWS):
        for n in range(0, columns, TILE_COLUMNS):
            place, own_a = c + FLOAT_BYTES * (m * c_row + n), a + FLOAT_BYTES * m * a_row
            written_tile(place, c_row, own_a, a_row, a_column, b + FLOAT_BYTES * n, b_row, depth)


@inlined
def add_product(c, c_row, a, a_row, a_column, b, b_row, rows, columns, depth):
    """As `multiply`, added to C."""
    for m in range(0, rows, TILE_ROWS):
        for n in range(0, columns, TILE_COLUMNS):
            place, own_a = c + FLOAT_BYTES * (m * c_row + n), a + FLOAT_BYTES * m * a_row
            added_tile(place, c_row, own_a, a_row, a_column, b + FLOAT_BYTES * n, b_row, depth)
