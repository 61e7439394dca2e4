"""Sampling on the transformers model with continuous batching.

pool (whose turn it is) -> batch (admit, step) -> replica (modules with the weights of one of the
snapshots), keys_values, prompt_scores, choose, stop
"""
