"""Seeds by name: all randomness of a run is a function of its seed and of where it is used."""

import hashlib
import json

import numpy as np


def derive_seed(seed: int, *path: str | int) -> int:
    """A seed below 2**31 for one use: a hash of the run's seed and of the use's name and counters.

    Nothing is carried from one use to the next, so that a stage that goes on after a crash draws
    what an uninterrupted one draws.
    """
    digest = hashlib.blake2b(json.dumps([seed, *path]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for one use."""
    return np.random.default_rng(derive_seed(seed, *path))
