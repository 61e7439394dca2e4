"""What a recipe takes, read from its source: importing it would need the cookbook here."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinsmith.config import Cookbook
from tinsmith.config.cookbook import GIVEN
from tinsmith.environments import Environment
from tinsmith.errors import TinsmithError, nearest

ENVIRONMENT = Environment("cookbook")
LOADS, RANK = "load_checkpoint_path", "lora_rank"
DEFAULT_RANK = 32  # of every recipe without the argument: the default of the cookbook's train loops
PACKAGE = "tinker_cookbook.recipes"
# Calls of chz by which a recipe says what its arguments are: a class, or a function that takes one.
_ENTRIES = ("entrypoint", "nested_entrypoint", "Blueprint")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A module to run, its file, and the names of its arguments, the first parts of dotted ones."""

    module: str
    file: Path
    arguments: frozenset[str]

    def takes(self, argument: str) -> bool:
        return argument.partition(".")[0] in self.arguments


def find_recipe(name: str, packages: Path) -> Recipe:
    """`name` below the cookbook's recipes, or a module of the user's own in the current folder."""
    places = {f"{PACKAGE}.{name}": packages, name: Path()}
    for module, folder in places.items():
        path = folder.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__main__.py"):
            if file.is_file():
                return Recipe(module, file, _arguments(file, [Path(), packages]))
    package = packages.joinpath(*PACKAGE.split("."))
    known = [".".join(f.relative_to(package).with_suffix("").parts) for f in package.rglob("*.py")]
    raise TinsmithError(
        f"recipe must be a module of {PACKAGE} or of this folder, got {name!r}"
        f"{nearest(name, [n for n in known if n.endswith(name.rpartition('.')[2])] or known)}"
    )


def check_arguments(recipe: Recipe, stage: Cookbook, rank: int, loads: bool) -> None:
    """Refuse what the recipe cannot take; `loads` if it is to start from the stage before."""
    said = f"recipe {stage.recipe}"
    for name in stage.arguments:
        if not recipe.takes(name):
            raise TinsmithError(
                f"{said} takes no argument {name!r}{nearest(name, recipe.arguments - {*GIVEN})}"
            )
    if not recipe.takes("model_name") and not recipe.takes("base_model"):
        raise TinsmithError(f"{said} takes no model_name: it does not train the config's model")
    if loads and not recipe.takes(LOADS):
        raise TinsmithError(
            f"{said} cannot start from the stage before, because it takes no {LOADS}; set start:"
            " recipe, with which it starts where it says itself"
        )
    if not loads and not recipe.takes(RANK) and rank != DEFAULT_RANK:
        raise TinsmithError(
            f"{said} takes no {RANK} and makes adapters of the cookbook's own rank; lora.rank must"
            f" be {DEFAULT_RANK} with it, got {rank}"
        )


def _arguments(file: Path, folders: Sequence[Path]) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _last(node.func) in _ENTRIES and node.args:
            described = node.args[0]
            if isinstance(described, ast.Name):
                described = _parameter(tree, described.id) or described
            if fields := _fields_of(tree, described, folders):
                return frozenset(fields)
    raise TinsmithError(
        f"{file} must be a recipe that takes its arguments by chz, key=value, as those of the"
        " cookbook do; it calls chz.entrypoint with no class that stands in it"
    )


def _parameter(tree: ast.Module, name: str) -> ast.expr | None:
    """The annotation of the first parameter of the function of that name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node.args.args[0].annotation if node.args.args else None
    return None


def _fields_of(tree: ast.Module, described: ast.expr, folders: Sequence[Path]) -> set[str]:
    """The fields of a class that stands in the module, or in one that it imports by name."""
    if isinstance(described, ast.Name):
        return set(_fields(tree, described.id))
    if isinstance(described, ast.Attribute) and isinstance(described.value, ast.Name):
        for file in _imported(tree, described.value.id, folders):
            return set(_fields(ast.parse(file.read_text(encoding="utf-8")), described.attr))
    return set()


def _fields(tree: ast.Module, name: str) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for base in node.bases:
                yield from _fields(tree, _last(base))
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id


def _imported(tree: ast.Module, name: str, folders: Sequence[Path]) -> Iterator[Path]:
    """The file of a module that stands under `name`: from PACKAGE import NAME."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    files = (
                        folder.joinpath(*node.module.split("."), f"{alias.name}.py")
                        for folder in folders
                    )
                    yield from (file for file in files if file.is_file())


def _last(node: ast.expr) -> str:
    """b of a.b, and of b."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
