"""Make the tiny model: a complete Hugging Face model directory."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path

from tinsmith.config import TinyModel
from tinsmith.errors import TinsmithError
from tinsmith.files import new_directory
from tinsmith.tiny.limits import refusal
from tinsmith.tiny.pretraining import Corpus, fixed_threads, new_model, pretrain, share_solved
from tinsmith.tiny.tokenizer import make_tokenizer

ENOUGH_SOLVED = 0.5
logger = logging.getLogger(__name__)


def make_tiny_model(
    directory: Path, settings: TinyModel, digits: int, operations: Sequence[str]
) -> None:
    """Pretrain a tiny model on arithmetic and write it to `directory`, whole or not at all.

    The same arguments give the same bytes on the same machine: every draw comes from
    `settings.seed`, and the number of threads is fixed because it changes the order of sums.
    """
    if reason := refusal(digits, operations):
        raise TinsmithError(reason)
    tokenizer = make_tokenizer()
    model = new_model(tokenizer, settings.hidden_size, settings.num_layers, settings.seed)
    corpus = Corpus(tokenizer, digits, operations, random.Random(settings.seed))
    with fixed_threads():
        pretrain(model, corpus.batches(settings.pretrain_steps), settings.pretrain_steps)
        _report(share_solved(model, corpus), settings.pretrain_steps)
    with new_directory(directory) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _report(solved: float, steps: int) -> None:
    logger.info("the tiny model's likeliest answer is right for %.0f %% of problems", 100 * solved)
    if solved < ENOUGH_SOLVED:
        logger.warning(
            "after %d steps the tiny model cannot do the sums, and post-training has little to"
            " build on: raise model.pretrain_steps, or lower data.digits",
            steps,
        )
