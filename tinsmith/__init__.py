"""Tinsmith: reproducible post-training of language models on the Tinker API."""

__version__ = "0.1.0"
