"""Tinsmith: reproducible post-training of language models on the Tinker API."""

import os

__version__ = "0.1.0"

# transformers and datasets take in TensorFlow and JAX where they are installed, for nothing that is
# used here: it costs seconds and memory, and breaks where versions disagree. Set here, before any
# module of ours can import either; what was set before is for programs that `tinsmith run` starts.
FRAMEWORKS_LEFT_OUT = ("USE_TF", "USE_FLAX", "USE_JAX")
SET_BEFORE = {name: os.environ.get(name) for name in FRAMEWORKS_LEFT_OUT}
os.environ.update(dict.fromkeys(FRAMEWORKS_LEFT_OUT, "0"))
