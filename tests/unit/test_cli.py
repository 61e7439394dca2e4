"""Options of the command line that need no server."""

from pathlib import Path

import pytest

from tinsmith.cli import main, parse_models
from tinsmith.errors import TinsmithError


def test_a_model_is_served_under_its_source_or_a_name_of_its_own():
    assert parse_models(["Org/Name", "tiny=models/tiny/", "models/other/"]) == {
        "Org/Name": "Org/Name",
        "tiny": "models/tiny/",
        "models/other": "models/other/".rstrip("/"),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [(["a=x", "a=y"], "the name 'a' is given twice"), (["=x"], "got '=x'"), (["a="], "got 'a='")],
)
def test_models_without_a_clear_name_are_refused(options: list[str], message: str):
    with pytest.raises(TinsmithError, match=message):
        parse_models(options)


def test_a_run_without_a_program_exits_with_code_2(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "--model", "m"]) == 2
    assert "tinsmith run: no program given" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["serve"], ["fly"], ["serve", "--model", "m", "--port", "x"]]
)
def test_wrong_words_are_answered_with_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: tinsmith" in capsys.readouterr().err


def test_a_program_that_does_not_exist_is_named_before_a_server_starts(
    capsys: pytest.CaptureFixture[str],
):
    assert main(["run", "--model", "m", "--", "no-such-program", "x"]) == 2
    assert "cannot start 'no-such-program': no such program" in capsys.readouterr().err


def test_a_key_that_the_sdk_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "--model", "m", "--api-key", "secret"]) == 2
    assert "--api-key must start with 'tml-'" in capsys.readouterr().err


def test_a_folder_whose_name_holds_an_equals_sign_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("results/seed=0/merged").mkdir(parents=True)
    folder = "results/seed=0/merged"
    assert parse_models([folder]) == {folder: folder}
    assert parse_models([f"mine={folder}"]) == {"mine": folder}
