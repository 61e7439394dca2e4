"""The settings of the local backend: defined once, read from options, config and environment."""

from tinsmith.settings.definition import (
    Count,
    LocalSettings,
    Natural,
    Rule,
    ServerSettings,
    rule_of,
    setting,
)
from tinsmith.settings.reading import (
    add_options,
    from_environment,
    given_options,
    option,
    options_of,
    sources,
    text_of,
    variables,
)

__all__ = [
    "Count",
    "LocalSettings",
    "Natural",
    "Rule",
    "ServerSettings",
    "add_options",
    "from_environment",
    "given_options",
    "option",
    "options_of",
    "rule_of",
    "setting",
    "sources",
    "text_of",
    "variables",
]
