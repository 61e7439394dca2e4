"""The tiny model: a Qwen3 that is pretrained on the spot, so that nothing has to be downloaded."""
