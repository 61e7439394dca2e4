"""`python -m tests.compatibility.surface`: the methods of this interpreter's SDK, as JSON."""

import inspect
import json

import click
import tinker
from tinker.cli.__main__ import main_cli

CLASSES = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")


def methods() -> list[str]:
    """Every public method, as Class.method."""
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


def commands(command: click.Command = main_cli, name: str = "tinker") -> list[str]:
    """Every command, as `tinker group command`."""
    if not isinstance(command, click.Group):
        return [name]
    context = click.Context(command)
    return [
        found
        for each in command.list_commands(context)
        if (child := command.get_command(context, each)) is not None
        for found in commands(child, f"{name} {each}")
    ]


if __name__ == "__main__":
    print(json.dumps(methods()))
