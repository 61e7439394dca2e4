"""Arithmetic in float32 that compiled functions share."""

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tinsmith.backend.compiled.threads import inlined

ZERO, ONE, NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
# Of e^x, as Cephes has them (expf): ln 2 in two parts, and a polynomial of the rest.
LOG2_E, LN2_HIGH, LN2_LOW = (
    np.float32(x) for x in (1.44269504088896341, 0.693359375, -2.12194440e-4)
)
P0, P1, P2, P3, P4, P5 = (
    np.float32(x)
    for x in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
        4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
    )
)  # fmt: skip
# A float32 to which small numbers are added as whole ones, in its lowest bits.
ROUNDING = np.float32(1.5 * 2**23)
SMALLEST = np.float32(-87)  # whose e^x has all its bits


@intrinsic
def _two_to(_: Any, shifted: Any):
    """2^n of a float32 ROUNDING + n: its lowest bits, where a float32 has its exponent."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        exponent = builder.shl(builder.bitcast(arguments[0], number), number(23))
        bits = builder.add(exponent, number(127 << 23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), generate


# Not to be reordered, or the two parts of ln 2 are one.
@numba.njit(fastmath={"contract"}, error_model="numpy")
def exp(x: Any) -> Any:
    """e^x of a float32 x <= 0 to its last two bits, for many at a time."""
    if x < SMALLEST:
        x = SMALLEST
    shifted = x * LOG2_E + ROUNDING
    n = shifted - ROUNDING
    r = x - n * LN2_HIGH - n * LN2_LOW
    polynomial = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    return (polynomial * r * r + r + ONE) * _two_to(shifted)  # pyright: ignore[reportCallIssue]


@intrinsic
def _ordered(_: Any, x: Any):
    """A float32's bits as a whole number, the larger the larger it is; and back, if it is
    given a whole number."""
    whole, real = ir.IntType(32), ir.FloatType()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        is_real = isinstance(signature.args[0], types.Float)
        bits = builder.bitcast(arguments[0], whole) if is_real else arguments[0]
        # Of negative ones all but the sign are turned over.
        turned = builder.and_(builder.ashr(bits, whole(31)), whole(0x7FFFFFFF))
        bits = builder.xor(bits, turned)
        return bits if is_real else builder.bitcast(bits, real)

    return (types.int32 if isinstance(x, types.Float) else types.float32)(x), generate


@inlined
def largest(x):
    """Of float32 numbers, many at a time: as whole numbers, of which none is incomparable."""
    top = _ordered(NOTHING)  # pyright: ignore[reportCallIssue]
    for i in range(len(x)):
        top = max(top, _ordered(x[i]))  # pyright: ignore[reportCallIssue]
    return _ordered(top)  # pyright: ignore[reportCallIssue]


@inlined
def sigmoid(x):
    """1 / (1 + e^-x)."""
    e = exp(-abs(x))
    one = ONE / (ONE + e)
    return one if x >= ZERO else e * one


@inlined
def norm_factor(x, epsilon):
    """1 / sqrt(mean(x^2) + epsilon)."""
    squares = ZERO
    for i in range(len(x)):
        squares += x[i] * x[i]
    return ONE / math.sqrt(squares / np.float32(len(x)) + epsilon)


@inlined
def rotate(x, factor, norm, has_norm, cos, sin, output):
    """A head x [K], times its norm's factor and weights if it has one, by its token's angles; sin
    has the sign of the half that it multiplies."""
    half = len(x) // 2
    for i in range(half):
        one, other = x[i] * factor, x[i + half] * factor
        if has_norm:
            one *= norm[i]
            other *= norm[i + half]
        output[i] = one * cos[i] + other * sin[i]
        output[i + half] = other * cos[i + half] + one * sin[i + half]
