"""Problems: read from a file, and drawn for a step."""

import json
from collections.abc import Sequence
from pathlib import Path

from tinsmith.errors import TinsmithError
from tinsmith.randomness import generator
from tinsmith.types import Problem


def read_problems(path: Path) -> tuple[Problem, ...]:
    """The problems of a JSONL file that `prepare_data` wrote."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        problems = tuple(Problem(**json.loads(line)) for line in lines)
    except (OSError, ValueError, TypeError) as error:
        raise TinsmithError(
            f"{path} must hold one JSON object a line with id, question, answer and extra: {error}"
        ) from error
    if not problems:
        raise TinsmithError(f"{path} must hold at least one problem, got an empty file")
    return problems


def draw_problems(
    problems: Sequence[Problem], size: int, step: int, seed: int, *path: str | int
) -> list[Problem]:
    """The `size` problems of a step: a window of an endless stream of shuffled epochs."""
    count = len(problems)
    orders: dict[int, list[int]] = {}
    drawn = []
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = generator(seed, *path, "epoch", epoch).permutation(count).tolist()
        drawn.append(problems[orders[epoch][index]])
    return drawn
