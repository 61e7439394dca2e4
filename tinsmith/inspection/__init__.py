"""Evaluations by Inspect AI, which runs in an environment of its own and asks the server."""
