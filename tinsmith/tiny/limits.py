"""What the tiny model is large enough for."""

from collections.abc import Sequence

MAX_DIGITS = 3
OPERATIONS = ("+", "-")


def refusal(digits: int, operations: Sequence[str]) -> str | None:
    """Why the tiny model cannot be made for these problems; None if it can."""
    if not 1 <= digits <= MAX_DIGITS:
        return (
            f"data.digits must be 1 to {MAX_DIGITS} with model.kind 'tiny', which is too small for"
            f" longer numbers, got {digits}; choose another number or another model"
        )
    if not operations or not set(operations) <= set(OPERATIONS):
        return (
            f"data.operations must be some of {', '.join(OPERATIONS)} with model.kind 'tiny', which"
            f" is too small for others, got {list(operations)}; choose others or another model"
        )
    return None
