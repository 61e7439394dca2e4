"""Run a recipe as `python -m MODULE key=value ...` would; for the cookbook's own Python.

    python launcher.py NAME=FOLDER MODULE key=value ...

The tokenizer of NAME is FOLDER's, the files that the server serves, and not what the hub has under
that name today. The recipe ends with the program that started it, whose end closes standard input.
Nothing of Tinsmith is imported here: the environment has none of it.
"""

import functools
import os
import runpy
import sys
import threading


def main() -> None:
    """Read the command line, and become the recipe."""
    _end_with_standard_input()
    model, module = sys.argv[1:3]
    name, _, folder = model.partition("=")
    _use_tokenizer(name, folder)
    sys.path[0] = os.getcwd()  # as with `python -m`, for recipes of the user's own
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_standard_input() -> None:
    """And give the recipe another, which answers what some ask when their log folder is there."""
    watched = os.dup(0)
    answer, question = os.pipe()
    os.write(question, b"resume\n")
    os.close(question)
    os.dup2(answer, 0)

    def wait() -> None:
        while os.read(watched, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _use_tokenizer(name: str, folder: str) -> None:
    from tinker_cookbook.tokenizer_utils import register_tokenizer  # pyright: ignore

    @functools.cache
    def load() -> object:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    register_tokenizer(name, load)


if __name__ == "__main__":
    main()
