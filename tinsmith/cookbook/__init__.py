"""Recipes of the tinker-cookbook, run as they are in an environment of their own."""
