"""Make the tiny model: a complete Hugging Face model directory."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tinsmith.config import TinyModel
from tinsmith.errors import TinsmithError
from tinsmith.files import new_directory
from tinsmith.tiny.pretraining import Corpus, new_model, pretrain
from tinsmith.tiny.tokenizer import make_tokenizer

MAX_DIGITS = 3
OPERATIONS = ("+", "-")
THREADS = 1


def make_tiny_model(
    directory: Path, settings: TinyModel, digits: int, operations: Sequence[str]
) -> None:
    """Pretrain a tiny model on arithmetic and write it to `directory`, whole or not at all.

    The same arguments give the same bytes on the same machine: every draw comes from
    `settings.seed`, and the number of threads is fixed because it changes the order of sums.
    """
    _check(digits, operations)
    tokenizer = make_tokenizer()
    model = new_model(tokenizer, settings.hidden_size, settings.num_layers, settings.seed)
    corpus = Corpus(tokenizer, digits, operations, random.Random(settings.seed))
    with _threads(THREADS):
        pretrain(model, corpus.batches(settings.pretrain_steps), settings.pretrain_steps)
    with new_directory(directory) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _check(digits: int, operations: Sequence[str]) -> None:
    if not 1 <= digits <= MAX_DIGITS:
        raise TinsmithError(
            f"data.digits must be 1 to {MAX_DIGITS} with model.kind 'tiny', which is too small for"
            f" longer numbers, got {digits}; choose another number or another model"
        )
    unknown = [operation for operation in operations if operation not in OPERATIONS]
    if unknown or not operations:
        raise TinsmithError(
            f"data.operations must be some of {', '.join(OPERATIONS)} with model.kind 'tiny', which"
            f" is too small for others, got {list(operations)}; choose others or another model"
        )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
