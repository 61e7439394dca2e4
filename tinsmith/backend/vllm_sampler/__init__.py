"""Sampling by vLLM engines, each a child process in vLLM's own environment.

pool (what goes to an engine) -> line (whose turn it is) -> process (the child, alive or dead)
                                 messages (the wire to it), launch (how it starts), probe (is what
                                 it samples from what is trained?)
"""
