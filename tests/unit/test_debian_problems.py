"""Problems made of what Debian packages hold: what is read, asked and refused."""

import json
import sys
from pathlib import Path

import pytest

from scripts import debian_problems

NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE,
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
00001930 03 n 01 physical_entity 0 001 @ 00001740 n 0000 | an entity that has physical existence
00002452 03 n 01 thing 0 001 @ 00001930 n 0000 | a separate and self-contained entity
00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000 | a tangible and visible \
entity; an entity that can cast a shadow; "it was full of rackets"; "an object"
00003553 03 n 02 whole 0 unit 0 001 @ 00002684 n 0000 | an assemblage of parts
"""
PACKAGES = """\
Package: tin
Description: news reader
 Reads news. It is old.
 .
 It has colours.

Package: nameless
Status: install ok installed
"""


def made(kind: str, text: str, folder: Path, *options: str) -> list[dict]:
    """The rows that the program writes for the text of a source."""
    source, out = folder / "source", folder / "out.jsonl"
    source.write_text(text)
    code = run(kind, str(out), f"--source={source}", *options)
    assert code == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["debian_problems", *arguments])
        return debian_problems.main()


def test_a_definition_asks_for_its_noun_among_four_and_leaves_examples_out(tmp_path: Path) -> None:
    rows = made("definition", NOUNS, tmp_path)
    nouns = ["entity", "physical entity", "thing", "object", "whole"]
    assert [row["answer"] for row in rows] == nouns
    assert rows[3]["question"] == (
        "Which noun means: a tangible and visible entity; an entity that can cast a shadow?"
    )
    for row in rows:
        assert row["answer"] in row["choices"]
        assert len(set(row["choices"])) == 4
        assert set(row["choices"]) <= set(nouns)


def test_long_definitions_are_left_out_and_some_can_be_drawn(tmp_path: Path) -> None:
    short = made("definition", NOUNS, tmp_path, "--max-characters=40")
    assert [row["answer"] for row in short] == ["entity", "physical entity", "thing", "whole"]
    drawn = made("definition", NOUNS, tmp_path, "--num-problems=2", "--seed=3")
    assert len(drawn) == 2
    assert drawn == made("definition", NOUNS, tmp_path, "--num-problems=2", "--seed=3")


def test_a_summary_is_cut_at_the_end_of_a_sentence(tmp_path: Path) -> None:
    [row] = made("summary", PACKAGES, tmp_path, "--max-characters=30")
    assert row == {"question": "Reads news. It is old.", "answer": "news reader"}


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("definition", PACKAGES, "must define at least 4 nouns, as WordNet's data.noun does"),
        ("summary", NOUNS, "must describe packages, as dpkg keeps them, got none"),
        ("definition", None, "must be WordNet's data.noun (apt install wordnet-base)"),
        ("constrained", None, "must be a list of packages, as dpkg keeps it"),
    ],
)
def test_a_source_that_is_something_else_is_refused(
    kind: str, text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out.jsonl"
    if text is not None:
        source.write_text(text)
    assert run(kind, str(out), f"--source={source}") == 2
    assert f"debian_problems: {source} {said}" in capsys.readouterr().err
    assert not out.exists()
