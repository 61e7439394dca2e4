"""Graders: does what a model wrote match the reference answer? They never raise."""

import re
import string
from collections.abc import Callable
from decimal import Decimal

Grader = Callable[[str, str], bool]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
NUMBER = re.compile(
    r"(?<![\w.])-?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def exact(text: str, answer: str) -> bool:
    """Equal but for white space around."""
    return text.strip() == answer.strip()


def normalised(text: str, answer: str) -> bool:
    """Equal but for case, punctuation, articles and white space (Rajpurkar et al. 2016, SQuAD)."""
    return _normalise(text) == _normalise(answer)


def numeric(text: str, answer: str) -> bool:
    """The last number of the text equals the last number of the answer: "so 1,250.0" is "1250"."""
    written, expected = _last_number(text), _last_number(answer)
    return written is not None and written == expected


GRADERS: dict[str, Grader] = {"exact": exact, "normalised": normalised, "numeric": numeric}


def _normalise(text: str) -> str:
    without_punctuation = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", without_punctuation).split())


def _last_number(text: str) -> Decimal | None:
    numbers = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
