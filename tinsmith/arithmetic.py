"""Arithmetic problems: distinct sums, differences and products, drawn by a seed."""

import operator
import random
from collections.abc import Iterator, Sequence

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def draw_arithmetic(
    num_problems: int, digits: int, operations: Sequence[str], seed: int
) -> Iterator[tuple[str, str]]:
    """Question and answer of distinct problems, like ("27+58", "85"); operands below 10^digits."""
    size = 10**digits
    chosen = random.Random(seed).sample(range(len(operations) * size * size), num_problems)
    for index in chosen:
        operation, operands = divmod(index, size * size)
        symbol = operations[operation]
        left, right = divmod(operands, size)
        yield f"{left}{symbol}{right}", str(OPERATIONS[symbol](left, right))
