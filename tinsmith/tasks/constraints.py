"""Instructions that a program can check, as one field of a problem's row: how each is said, and
when a text follows it (after Zhou et al. 2023, IFEval)."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from tinsmith.config.sections import Count, Section, Text

SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
Format = Literal["json", "bullets", "one_line", "lowercase", "uppercase"]


class Constraints(Section):
    """The instructions of one problem; at least one."""

    min_words: Count | None = None
    max_words: Count | None = None
    max_characters: Count | None = None
    max_sentences: Count | None = None
    keywords: tuple[Text, ...] | None = Field(default=None, min_length=1)
    forbidden: tuple[Text, ...] | None = Field(default=None, min_length=1)
    starts_with: Text | None = None
    ends_with: Text | None = None
    format: Format | None = None

    @model_validator(mode="after")
    def _can_be_followed(self) -> "Constraints":
        if not self.given():
            raise ValueError(f"max_words or another of {', '.join(KINDS)} must be given, got none")
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(
                f"min_words must be at most max_words = {self.max_words}, got {self.min_words}"
            )
        both = {word.lower() for word in self.keywords or ()} & {
            word.lower() for word in self.forbidden or ()
        }
        if both:
            raise ValueError(f"forbidden must not list keywords, got {sorted(both)} in both")
        return self

    def given(self) -> Mapping[str, Any]:
        """The instructions by kind."""
        return self.model_dump(exclude_none=True)

    def instructions(self) -> str:
        """All of them in words, a sentence each."""
        return " ".join(KINDS[name].say(value) for name, value in self.given().items())

    def followed(self, text: str) -> Iterator[tuple[str, bool]]:
        """Each kind, and whether the text follows it."""
        for name, value in self.given().items():
            yield name, KINDS[name].check(text, value)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of instruction: its sentence, and its check of a text."""

    say: Callable[[Any], str]
    check: Callable[[str, Any], bool]


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _num_sentences(text: str) -> int:
    """Stretches of text that end in . ! or ?, and what stands behind the last of them."""
    return sum(bool(part.strip()) for part in SENTENCE_END.split(text))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_list(text: str) -> bool:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return bool(lines) and all(line[0] in "-*\N{BULLET}" for line in lines)


FORMATS: Mapping[str, Kind] = {
    "json": Kind(lambda _: "Answer in JSON alone.", lambda text, _: _is_json(text)),
    "bullets": Kind(
        lambda _: "Answer as a list whose every line begins with '- '.",
        lambda text, _: _is_list(text),
    ),
    "one_line": Kind(
        lambda _: "Answer in one line.", lambda text, _: len(text.strip().splitlines()) == 1
    ),
    "lowercase": Kind(
        lambda _: "Write in small letters only.",
        lambda text, _: bool(text.strip()) and text == text.lower(),
    ),
    "uppercase": Kind(
        lambda _: "Write in capital letters only.",
        lambda text, _: bool(text.strip()) and text == text.upper(),
    ),
}
KINDS: Mapping[str, Kind] = {
    "min_words": Kind(lambda n: f"Use at least {n} words.", lambda text, n: len(text.split()) >= n),
    "max_words": Kind(
        lambda n: f"Use at most {n} words.", lambda text, n: 0 < len(text.split()) <= n
    ),
    "max_characters": Kind(
        lambda n: f"Use at most {n} characters.", lambda text, n: 0 < len(text.strip()) <= n
    ),
    "max_sentences": Kind(
        lambda n: f"Use at most {n} sentences.", lambda text, n: 0 < _num_sentences(text) <= n
    ),
    "keywords": Kind(
        lambda words: f"Use these words: {', '.join(words)}.",
        lambda text, words: all(_has_word(text, word) for word in words),
    ),
    "forbidden": Kind(
        lambda words: f"Do not use these words: {', '.join(words)}.",
        lambda text, words: bool(text.strip()) and not any(_has_word(text, word) for word in words),
    ),
    "starts_with": Kind(
        lambda start: f"Begin with: {start}",
        lambda text, start: text.lstrip().startswith(start),
    ),
    "ends_with": Kind(
        lambda end: f"End with: {end}", lambda text, end: text.rstrip().endswith(end)
    ),
    "format": Kind(
        lambda name: FORMATS[name].say(name), lambda text, name: FORMATS[name].check(text, name)
    ),
}
