"""What every task does with a problem's text: ask it, and read what its row holds besides."""

import json
from typing import Any

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.types import Problem


def in_template(settings: config.PromptedTask, question: str) -> str:
    """The message that asks: the question in the prompt template."""
    return settings.prompt_template.replace("{question}", question)


def extra(problem: Problem, field: str) -> Any:
    """A field that data.extra_fields kept, None where there is none; text is read as JSON, because
    a CSV file holds nothing else."""
    value = problem.extra.get(field)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise refusal(problem, f"{field} must be JSON, got {value!r}") from error


def refusal(problem: Problem, rule: str) -> TinsmithError:
    """The error for a problem that a task cannot use."""
    return TinsmithError(f"the problem {problem.id} ({problem.question[:60]!r}): {rule}")
