"""Classes of the user's own code: found, checked before anything runs, and made."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.speakers import frozen_models
from tinsmith.chat import Chat
from tinsmith.config import LatestOpponent, UserClass, UserParadigm
from tinsmith.errors import TinsmithError
from tinsmith.paradigms import Paradigm, check_paradigm, make_paradigm, put_in_training
from tinsmith.tasks import Task, make_task
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.user_code import load_class

CHAT = Chat(make_tokenizer())
TASK = """
class Echo:
    def __init__(self, chat, *, loudness=1):
        self.chat, self.loudness = chat, loudness
    def question(self, problem): return problem.question
    def prompt(self, problem): return self.chat.prompt(problem.question)
    def reference(self, problem): return self.chat.reply(problem.question)
    def reward(self, problem, completion): return None
"""
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Writes a module into the working directory; its name, which is another in every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write_module(text: str) -> str:
        name = f"mine_{abs(hash(request.node.nodeid))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write_module


def refusal(kind: str, seam: type = Task, **options: Any) -> str:
    section = UserClass(kind=kind, options=options)
    with pytest.raises(TinsmithError) as caught:
        load_class(section, seam, "task", None)
    return str(caught.value)


def test_a_task_of_the_users_is_made_with_its_options(write: Write) -> None:
    name = write(TASK)
    task = make_task(UserClass(kind=f"{name}:Echo", options={"loudness": 3}), CHAT)
    assert vars(task)["loudness"] == 3
    assert task.chat is CHAT


def test_a_paradigm_of_the_users_is_made_with_its_options(write: Write) -> None:
    name = write(
        "class Twice:\n    speakers = ('policy',)\n    def __init__(self, n): self.n = n\n"
        "    def play(self, *arguments): return []\n"
    )
    paradigm = make_paradigm(UserParadigm(kind=f"{name}:Twice", options={"n": 2}))
    assert vars(paradigm)["n"] == 2


DUEL = """
class Duel:
    speakers = ("policy",)
    def __init__(self, frozen): self.frozen = frozen
    def play(self, *arguments): return []
    def in_training(self, snapshots): return ("against", snapshots)
"""
OPPONENT = LatestOpponent(kind="latest")


def test_a_paradigm_that_takes_frozen_models_is_given_them(write: Write) -> None:
    frozen = frozen_models({})
    paradigm = make_paradigm(UserParadigm(kind=f"{write(DUEL)}:Duel"), frozen)
    assert vars(paradigm)["frozen"] is frozen


def test_a_paradigm_with_an_opponent_is_told_whom_it_meets_in_training(write: Write) -> None:
    section = UserParadigm(kind=f"{write(DUEL)}:Duel", opponent=OPPONENT)
    paradigm = make_paradigm(section, frozen_models({}))
    assert put_in_training(paradigm, None) == ("against", None)


def test_an_opponent_is_refused_where_the_class_does_not_take_one(write: Write) -> None:
    name = write(DUEL.replace("in_training", "elsewhere"))
    section = UserParadigm(kind=f"{name}:Duel", opponent=OPPONENT)
    with pytest.raises(TinsmithError, match="Duel must have the method in_training; see"):
        check_paradigm(section)
    check_paradigm(section.model_copy(update={"opponent": None}))


def test_what_tinsmith_gives_a_class_is_no_option(write: Write) -> None:
    section = UserParadigm(kind=f"{write(DUEL)}:Duel", options={"frozen": 1})
    with pytest.raises(TinsmithError, match=r"paradigm\.options must not set 'frozen', which"):
        check_paradigm(section)


def test_a_module_that_is_not_there_is_named_with_where_it_was_looked_for(write: Write) -> None:
    write("")
    said = refusal("no_such_module:Echo")
    assert "task.kind 'no_such_module:Echo' must name a module" in said
    assert str(Path.cwd()) in said
    assert "ModuleNotFoundError: No module named 'no_such_module'" in said


def test_a_module_that_breaks_on_import_says_how(write: Write) -> None:
    assert "ended with ZeroDivisionError: division by zero" in refusal(f"{write('1 / 0')}:Echo")


def test_a_class_that_is_missing_is_named_with_those_that_are_there(write: Write) -> None:
    said = refusal(f"{write(TASK)}:Ekho")
    assert "has no class 'Ekho'; it has Echo" in said


def test_what_is_no_class_is_refused(write: Write) -> None:
    assert "has no class 'Echo'; it has none" in refusal(f"{write('Echo = 3')}:Echo")


@pytest.mark.parametrize("method", ["question", "prompt", "reference", "reward"])
def test_a_missing_method_is_named(write: Write, method: str) -> None:
    name = write(TASK.replace(f"def {method}", f"def _{method}"))
    said = refusal(f"{name}:Echo")
    assert f"task.kind: {name}:Echo must have the method {method}" in said
    assert "tinsmith.tasks.task.Task" in said


def test_a_method_that_takes_something_else_is_named(write: Write) -> None:
    name = write(TASK.replace("def reward(self, problem, completion)", "def reward(self, text)"))
    assert "reward must take (self, problem, completion)" in refusal(f"{name}:Echo")


def test_options_that_the_class_does_not_accept_are_named(write: Write) -> None:
    said = refusal(f"{write(TASK)}:Echo", loudnes=3)
    assert "task.options must be the keyword arguments of" in said
    assert "got {'loudnes': 3}: got an unexpected keyword argument 'loudnes'" in said


def test_a_property_that_is_missing_is_named_when_the_object_is_made(write: Write) -> None:
    name = write(TASK.replace("self.chat, self", "self.chatt, self"))
    with pytest.raises(TinsmithError, match="must have chat; see"):
        make_task(UserClass(kind=f"{name}:Echo"), CHAT)


def test_a_task_is_no_paradigm(write: Write) -> None:
    assert "must have the method play" in refusal(f"{write(TASK)}:Echo", Paradigm)
