"""Sampling on the transformers model with continuous batching.

batch (admit, step) -> replica (modules with the snapshot's weights), keys_values, choose, stop
"""
