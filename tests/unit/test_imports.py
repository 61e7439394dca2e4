"""A deferred import happens once, when something of it is used; garbage is collected afterwards."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from tinsmith.errors import TinsmithError
from tinsmith.imports import uncollected

PACKAGE = {
    "__init__.py": "print('imported')\nfrom slow.part import Part\nimport slow.part\nnumber = 1\n",
    "part.py": "print('part')\nclass Part: pass\n",
    "extra.py": "from slow import number\n",
}
DEFER = "from tinsmith.imports import defer_import\ndefer_import('slow')\nimport slow\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "slow").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "slow" / name).write_text(text)
    return tmp_path


def _said(folder: Path, program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{folder}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_it_is_not_imported_before_it_is_used(folder: Path) -> None:
    assert _said(folder, f"{DEFER}print('here', slow.__name__)") == ["here", "slow"]


@pytest.mark.parametrize(
    "use",
    [
        "number = slow.number",
        "from slow import number",
        "import slow.part; number = slow.number; assert slow.part.Part is slow.Part",
        "from slow.part import Part; number = slow.number; assert Part is slow.Part",
        "from slow.extra import number",
        "import sys; import slow.extra; number = sys.modules['slow'].number",
        "import importlib.util as u; assert u.find_spec('slow.part').origin.endswith('part.py')\n"
        "import slow.part; number = slow.number; assert slow.part.Part is slow.Part",
    ],
)
def test_each_way_to_use_it_imports_it_once(folder: Path, use: str) -> None:
    check = (
        "import sys; own = sys.modules['slow.part']; assert own.__spec__.origin.endswith('part.py')"
    )
    said = _said(folder, f"{DEFER}print('here')\n{use}\n{check}\nprint(number)")
    assert said == ["here", "imported", "part", "1"]


def test_what_is_imported_already_and_what_is_missing_stay_as_they_are(folder: Path) -> None:
    assert _said(folder, f"import slow\n{DEFER}print(slow.number)") == ["imported", "part", "1"]
    missing = DEFER.replace("slow", "nowhere").rpartition("import")[0]
    assert _said(folder, f"{missing}import sys; print('nowhere' in sys.modules)") == ["False"]


def test_threads_that_use_it_at_once_import_it_once(folder: Path) -> None:
    program = (
        f"{DEFER}from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    print(*set(pool.map(lambda _: slow.number, range(64))))"
    )
    assert _said(folder, program) == ["imported", "part", "1"]


def test_what_dies_later_is_collected(folder: Path) -> None:
    """Whoever has the stand-in asks it again and again, which must keep nothing alive."""
    program = (
        f"{DEFER}import gc, weakref\nslow.number\n"
        "class Node: pass\n"
        "node = Node(); node.own = node; seen = weakref.ref(node); del node\n"
        "slow.number; gc.collect(); print(seen())"
    )
    assert _said(folder, program) == ["imported", "part", "None"]


@pytest.mark.parametrize("name", ["train", "evaluate", "check_setup", "prepare_data", "report"])
def test_commands_that_need_no_pytorch_do_not_import_it(name: str) -> None:
    """Its second would be every job's."""
    program = f"import sys, scripts.{name}; print('torch._C' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_garbage_is_collected_again_after_the_outermost_imports_whatever_they_raise() -> None:
    frozen_before = gc.get_freeze_count()
    try:
        with pytest.raises(TinsmithError):
            _import_in_vain()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen_before
    finally:
        gc.unfreeze()


def _import_in_vain() -> None:
    with uncollected():
        with uncollected():
            pass
        assert not gc.isenabled()
        raise TinsmithError("a module that fails")
