"""Problems: where they come from, what is refused, and how they are split."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.arithmetic import draw_arithmetic
from tinsmith.config import ArithmeticData, FileData
from tinsmith.data import ProblemRow, prepare_data, split
from tinsmith.errors import TinsmithError


def file_data(path: Path, **changes: Any) -> FileData:
    return FileData.model_validate(
        {"kind": "file", "path": str(path), "held_out": 1} | changes, strict=False
    )


def prepared(data: Any, folder: Path) -> tuple[list[dict], list[dict], dict]:
    files = [folder / name for name in ("train.jsonl", "heldout.jsonl", "stats.json")]
    prepare_data(data, *files)
    train, heldout = ([json.loads(x) for x in f.read_text().splitlines()] for f in files[:2])
    return train, heldout, json.loads(files[2].read_text())


def refusal(data: Any, folder: Path) -> str:
    with pytest.raises(TinsmithError) as caught:
        prepared(data, folder)
    assert not (folder / "train.jsonl").exists()
    return str(caught.value)


def test_arithmetic_problems_are_distinct_right_and_a_function_of_the_seed() -> None:
    drawn = list(draw_arithmetic(300, 2, ("+", "-", "*"), seed=1))
    assert len({question for question, _ in drawn}) == 300
    assert all(eval(question) == int(answer) for question, answer in drawn)
    assert drawn == list(draw_arithmetic(300, 2, ("+", "-", "*"), seed=1))
    assert drawn != list(draw_arithmetic(300, 2, ("+", "-", "*"), seed=2))


def test_all_possible_problems_can_be_drawn() -> None:
    drawn = dict(draw_arithmetic(100, 1, ("+",), seed=0))
    assert len(drawn) == 100
    assert drawn["9+9"] == "18"


@given(st.sets(st.text(min_size=1), min_size=2, max_size=40), st.integers(0, 9), st.data())
def test_no_problem_is_both_trained_on_and_held_out(
    questions: set[str], seed: int, data: st.DataObject
) -> None:
    problems = [ProblemRow(str(i), question, "1") for i, question in enumerate(questions)]
    held_out = data.draw(st.integers(1, len(problems) - 1))
    train, heldout = split(problems, held_out, seed)
    assert len(heldout) == held_out
    assert not {p.id for p in train} & {p.id for p in heldout}
    assert {p.id for p in [*train, *heldout]} == {p.id for p in problems}


def test_the_split_does_not_depend_on_the_order_of_the_rows() -> None:
    problems = [ProblemRow(str(i), f"q{i}", "1") for i in range(50)]
    assert split(problems, 10, 0)[1] == split(problems[::-1], 10, 0)[1]
    assert split(problems, 10, 0)[1] != split(problems, 10, 1)[1]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_files_of_every_kind_hold_the_same_problems(ending: str, tmp_path: Path) -> None:
    rows = [{"q": f"What is {n}, twice?", "a": str(2 * n)} for n in range(5)]
    path = tmp_path / f"problems.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif ending == "csv":
        path.write_text("q,a\n" + "".join(f'"{r["q"]}",{r["a"]}\n' for r in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = file_data(path, question_field="q", answer_field="a", held_out=2)
    train, heldout, stats = prepared(data, tmp_path)
    assert {(p["question"], p["answer"]) for p in train + heldout} == {
        (row["q"], row["a"]) for row in rows
    }
    assert (stats["num_rows"], stats["num_train"], stats["num_heldout"]) == (5, 3, 2)


def test_every_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"question": "1", "answer": "1"}\n{"question": "2"}\n{"question": 3\n[4]\n'
        '{"question": "5", "answer": null}\n{"question": true, "answer": "6"}\n'
    )
    said = refusal(file_data(path), tmp_path)
    assert "line 2 has no field 'answer' (its fields: 'question')" in said
    assert "line 3 is not JSON" in said
    assert "line 4 is not a JSON object" in said
    assert "line 5 has answer None" in said
    assert "line 6 has question True" in said
    assert "line 1" not in said


def test_a_hundred_bad_rows_are_counted_and_not_all_printed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("{}\n" * 100)
    said = refusal(file_data(path), tmp_path)
    assert "line 10 has no field" in said
    assert "and 90 more" in said
    assert len(said) < 1000


def test_a_csv_row_is_named_by_the_line_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('question,answer\n"two\nlines",1\n3\n4,5,6\n')
    said = refusal(file_data(path), tmp_path)
    assert "line 4 has answer None" in said
    assert "line 5 has more cells than the header" in said


@pytest.mark.parametrize(("name", "text"), [("p.jsonl", ""), ("p.csv", "question,answer\n")])
def test_an_empty_file_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert "must hold at least one row, but it is empty" in refusal(
        file_data(tmp_path / name), tmp_path
    )


def test_files_that_are_not_what_their_ending_says_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("no")
    (tmp_path / "p.jsonl").write_bytes(b'{"question": "\xff"}')
    assert "must be a Parquet file" in refusal(file_data(tmp_path / "p.parquet"), tmp_path)
    assert "must be UTF-8" in refusal(file_data(tmp_path / "p.jsonl"), tmp_path)
    assert "but there is none" in refusal(file_data(tmp_path / "no.csv"), tmp_path)


def test_more_held_out_problems_than_there_are_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1", "answer": "1"}\n' * 9)
    assert "distinct problems, 1, got 1" in refusal(file_data(path), tmp_path)


def test_duplicates_and_rejected_rows_are_left_out_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [("a", 1), ("b", 2), ("a", 1), ("b", 3), ("", 4), ("c", ""), ("d", 5)]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    train, heldout, stats = prepared(file_data(path), tmp_path)
    assert sorted(p["question"] for p in train + heldout) == ["a", "b", "d"]
    assert stats["duplicates"] == [{"line": 3, "first_line": 1}]
    assert [row["line"] for row in stats["rejected"]] == [4, 5, 6]
    assert stats["rejected"][0]["why"] == "another answer than line 2, which has the same question"


def test_a_seed_makes_the_same_files_byte_for_byte(tmp_path: Path) -> None:
    data = ArithmeticData(kind="arithmetic", num_problems=200, held_out=50)
    prepared(data, tmp_path / "one")
    prepared(data, tmp_path / "two")
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_extra_fields_are_kept_as_the_row_has_them(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"question": "q", "answer": "A", "choices": ["one", 2], "notes": {"a": [None]}},
            {"question": "r", "answer": "B", "choices": [], "notes": 3}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, heldout, _ = prepared(file_data(path, extra_fields=("choices", "notes")), tmp_path)
    kept = {problem["question"]: problem["extra"] for problem in train + heldout}
    assert kept == {
        "q": {"choices": ["one", 2], "notes": {"a": [None]}},
        "r": {"choices": [], "notes": 3},
    }


def test_the_same_question_with_other_extra_fields_is_another_problem(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [
        {"question": "q", "limit": 1},
        {"question": "q", "limit": 2},
        {"question": "q", "limit": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = file_data(path, extra_fields=("limit",), answer_field=None)
    train, heldout, stats = prepared(data, tmp_path)
    assert len({problem["id"] for problem in train + heldout}) == 2
    assert stats["duplicates"] == [{"line": 3, "first_line": 1}]


def test_rows_without_answers_are_problems_where_none_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1"}\n{"question": "2"}\n{"question": ""}\n')
    train, heldout, stats = prepared(file_data(path, answer_field=None), tmp_path)
    assert {problem["answer"] for problem in train + heldout} == {""}
    assert stats["rejected"] == [{"line": 3, "why": "empty question"}]


def test_a_row_that_lacks_an_extra_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"question": "1", "answer": "1", "choices": 1}\n{"question": "2", "answer": 2}\n'
    )
    said = refusal(file_data(path, extra_fields=("choices",)), tmp_path)
    assert "line 2 has no field 'choices' (its fields: 'question', 'answer')" in said


def test_an_extra_field_that_no_json_can_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    rows = [{"question": "1", "answer": "1", "taken": b"\xff"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    said = refusal(file_data(path, extra_fields=("taken",)), tmp_path)
    assert "line 1 has taken b'\\xff', which must be what JSON knows" in said
