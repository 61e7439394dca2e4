"""Base models, the adapters trained on them, and a training step's arithmetic."""
