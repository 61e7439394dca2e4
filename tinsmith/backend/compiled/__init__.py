"""What is compiled by numba for a CPU in float32: how it runs, and arithmetic that it shares."""
