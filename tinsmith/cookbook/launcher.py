"""Run a recipe as `python -m MODULE key=value ...` would; for the cookbook's own Python.

    python launcher.py NAME=FOLDER MODULE key=value ...

The tokenizer of NAME is FOLDER's, the files that the server serves, and not what the hub has under
that name today. Nothing of Tinsmith is imported here: the environment has none of it.
"""

import functools
import os
import runpy
import sys


def main() -> None:
    """Read the command line, and become the recipe."""
    model, module = sys.argv[1:3]
    name, _, folder = model.partition("=")
    _use_tokenizer(name, folder)
    sys.path[0] = os.getcwd()  # as with `python -m`, for recipes of the user's own
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _use_tokenizer(name: str, folder: str) -> None:
    from tinker_cookbook.tokenizer_utils import register_tokenizer  # pyright: ignore

    @functools.cache
    def load() -> object:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    register_tokenizer(name, load)


if __name__ == "__main__":
    main()
