"""The local backend: a server that speaks the Tinker wire protocol on PyTorch.

app (HTTP) -> futures -> engine (one worker thread) -> trainer, sampler -> base model
                                                     -> store (SQLite and safetensors)
"""
