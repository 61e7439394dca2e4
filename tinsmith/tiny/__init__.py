"""The tiny model: a Qwen3 that is pretrained on the spot, so that nothing has to be downloaded."""

from tinsmith.tiny.model import make_tiny_model

__all__ = ["make_tiny_model"]
