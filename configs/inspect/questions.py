"""A task of Inspect AI: the questions of a .jsonl file, right where the answer is found at the end.

In a config: inspect: [{name: questions, task: configs/inspect/questions.py@questions,
arguments: {file: "{heldout}"}}].
"""

from inspect_ai import Task, task  # pyright: ignore
from inspect_ai.dataset import FieldSpec, json_dataset  # pyright: ignore
from inspect_ai.scorer import match  # pyright: ignore
from inspect_ai.solver import generate, system_message  # pyright: ignore


@task
def questions(file: str, system_prompt: str = "", numeric: bool = False) -> Task:
    """`file` holds rows with a question and its answer."""
    dataset = json_dataset(file, FieldSpec(input="question", target="answer"))
    solver = [generate()]
    if system_prompt:
        solver = [system_message(system_prompt), *solver]
    return Task(dataset=dataset, solver=solver, scorer=match(location="end", numeric=numeric))
