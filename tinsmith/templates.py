"""Texts of the config with {places} to be filled in."""

import re


def fill(template: str, **values: str) -> str:
    """Put each value in its place; braces in the values, and other braces, stay as they are."""
    places = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({places})\}}", lambda found: values[found[1]], template)
