"""Graders: does what a model wrote match the reference answer? They never raise."""

import re
import string
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

import regex

Grader = Callable[[str, str], bool]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
NUMBER = re.compile(
    r"(?<![\w.])-?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
MARKS = r"[\s*_(\[:]{0,8}"
SAID = regex.compile(rf"(?i:\banswer\b)(?:\s+(?i:is))?{MARKS}([A-Z])\b(?!')")
FIRST = regex.compile(rf"{MARKS}([A-Z])(?:[.):,*\]]|\s*(?:$|\n))")
BRACKETED = regex.compile(r"(?:\(|\\boxed\{)\s*([A-Z])\s*[)}]")
MATCH_TIMEOUT_S = 1.0


def exact(text: str, answer: str) -> bool:
    """Equal but for white space around."""
    return text.strip() == answer.strip()


def normalised(text: str, answer: str) -> bool:
    """Equal but for case, punctuation, articles and white space (Rajpurkar et al. 2016, SQuAD)."""
    return _normalise(text) == _normalise(answer)


def numeric(text: str, answer: str) -> bool:
    """The last number of the text equals the last number of the answer: "so 1,250.0" is "1250"."""
    written, expected = last_number(text), last_number(answer)
    return written is not None and written == expected


def multiple_choice(text: str, answer: str) -> bool:
    """The letter that the text decides for is the answer.

    It stands behind the last "answer is" or "answer:"; else the text begins with it ("B",
    "B. Paris", "(B)"); else it is the last one in brackets or a box. A letter in a sentence decides
    nothing.
    """
    return chosen_letter(text) == answer


def regular_expression(text: str, answer: str) -> bool:
    """The answer, a pattern of the `regex` package, is found in the text within a second."""
    pattern = _compile(answer)
    try:
        return pattern is not None and pattern.search(text, timeout=MATCH_TIMEOUT_S) is not None
    except (TimeoutError, MemoryError):  # a pattern that backtracks for ever finds nothing
        return False


def is_parsed(grader: str, text: str) -> bool:
    """Whether a text holds what a grader looks for: a number, a letter, or anything at all."""
    if grader == "numeric":
        return last_number(text) is not None
    if grader == "multiple_choice":
        return chosen_letter(text) is not None
    return True


def chosen_letter(text: str) -> str | None:
    """The letter that a text decides for, as `multiple_choice` says; None for none."""
    said, bracketed = SAID.findall(text), BRACKETED.findall(text)
    first = FIRST.match(text)
    letters = [*bracketed[-1:], *([first[1]] if first else []), *said[-1:]]
    return letters[-1] if letters else None


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression."""
    return _compile(text) is not None


GRADERS: dict[str, Grader] = {
    "exact": exact,
    "normalised": normalised,
    "numeric": numeric,
    "multiple_choice": multiple_choice,
    "regular_expression": regular_expression,
}


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> regex.Pattern[str] | None:
    try:
        return regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError):
        return None


def _normalise(text: str) -> str:
    without_punctuation = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", without_punctuation).split())


def last_number(text: str) -> Decimal | None:
    """The number that is written last, thousands in commas and signs read; None for none."""
    numbers = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
