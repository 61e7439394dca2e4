"""`python -m tests.compatibility.surface`: what the SDK of this interpreter offers, as JSON."""

import inspect
import json

import click
import tinker
from tinker.cli.__main__ import main_cli

CLASSES = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")


def public_names() -> list[str]:
    """Every public method, as Class.method, and every command, as `tinker group command`."""
    return [*_methods(), *_commands(main_cli, "tinker")]


def _methods() -> list[str]:
    from tinker.lib.public_interfaces import rest_client

    # RestClient became public under its own name after the other clients.
    found = {name: getattr(tinker, name, getattr(rest_client, name, None)) for name in CLASSES}
    return [
        f"{name}.{method}"
        for name, client in found.items()
        if client is not None
        for method, _ in inspect.getmembers(client, callable)
        if not method.startswith("_")
    ]


def _commands(command: click.Command, name: str) -> list[str]:
    if not isinstance(command, click.Group):
        return [name]
    context = click.Context(command)
    return [
        found
        for each in command.list_commands(context)
        if (child := command.get_command(context, each)) is not None
        for found in _commands(child, f"{name} {each}")
    ]


if __name__ == "__main__":
    print(json.dumps(public_names()))
