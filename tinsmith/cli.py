"""The command `tinsmith`: serve a local backend, or run a program against one."""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from tinsmith import SET_BEFORE, __version__
from tinsmith.errors import TinsmithError
from tinsmith.heap import keep_freed_memory
from tinsmith.imports import uncollected
from tinsmith.settings import (
    LocalSettings,
    ServerSettings,
    add_options,
    from_environment,
    given_options,
    option,
    options_of,
    sources,
)

KEY_VARIABLE = "TINSMITH_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    arguments = _parser().parse_args(words)
    try:
        if arguments.command == "serve":
            _serve(arguments)
            return 0
        if arguments.command == "show":
            _show(arguments)
            return 0
        return _run(arguments, command)
    except TinsmithError as error:
        print(f"tinsmith {arguments.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinsmith", description="Tinker programs on your own machine."
    )
    parser.add_argument("--version", action="version", version=f"tinsmith {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the Tinker API on local models")
    _add_server_options(serve)
    serve.add_argument("--stop-with-stdin", action="store_true", help="stop when stdin is closed")
    # Of the jobs of a workflow, which say in the file who uses the server (tinsmith/kept.py).
    serve.add_argument("--stop-when-unused", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    run = commands.add_parser(
        "run",
        help="serve, run a program against the server, stop",
        usage="tinsmith run --model MODEL [options] -- COMMAND ...",
    )
    _add_server_options(run)
    show = commands.add_parser("show", help="page through what a training stage sampled")
    show.add_argument("folder", type=Path, help="results/<run>/<stage>")
    show.add_argument("--step", type=int, help="0-based (default: the last)")
    show.add_argument("--sort", default="group", choices=["group", "reward", "advantage", "length"],
        help="highest first; group: as they were sampled (default: group)")  # fmt: skip
    show.add_argument("--limit", type=_positive, metavar="N", help="show N samples (default: all)")
    return parser


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", action="append", default=[], metavar="[NAME=]DIR_OR_HUB_ID",
        help="a base model; may be repeated (default name: as given)")  # fmt: skip
    source.add_argument("--replay", type=Path, metavar="FILE",
        help="answer from what --record wrote, without a model (docs/traffic.md)")  # fmt: skip
    add("--api-key", help=f"key that clients must send, tml-...; default: ${KEY_VARIABLE}, else "
        "a random one, printed at start")  # fmt: skip
    add("--substitute", action="append", default=[], metavar="stable_reinforce=LOSS",
        help="let cispo, ppo or importance_sampling stand in for a loss whose formula is not "
        "published (default: refuse it)")  # fmt: skip
    add_options(parser, ServerSettings)


def _positive(text: str) -> int:
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")


def _show(arguments: argparse.Namespace) -> None:
    from tinsmith.show import show

    show(arguments.folder, arguments.step, arguments.sort, arguments.limit)


def _serve(arguments: argparse.Namespace) -> None:
    api_key, is_generated = _api_key(arguments.api_key)
    settings, origins = _settings(arguments, api_key)
    keep_freed_memory()
    with uncollected():  # torch is imported here, after bad options are said
        from tinsmith.backend.replaying import serve_recording
        from tinsmith.backend.server import serve

    if arguments.stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    if (file := arguments.stop_when_unused) is not None:
        from tinsmith.kept import stop_when_unused

        threading.Thread(target=stop_when_unused, args=(file,), daemon=True).start()
    if is_generated:
        print(f"TINKER_API_KEY={api_key}", flush=True)
    if arguments.replay is not None:
        serve_recording(settings, arguments.replay)
    else:
        serve(settings, origins, ignores_sigterm=arguments.stop_with_stdin or file is not None)


def _settings(arguments: argparse.Namespace, api_key: str) -> tuple[ServerSettings, dict[str, str]]:
    """The server's settings, and where each came from: its option, its variable or its default."""
    given = given_options(arguments, ServerSettings)
    if arguments.replay is not None:
        _refuse_what_models_need(arguments, given)
    try:
        settings = ServerSettings(
            models=parse_models(arguments.model),
            api_key=api_key,
            substitutes=parse_substitutes(arguments.substitute),
            **from_environment(ServerSettings, os.environ) | given,
        )
    except ValidationError as error:  # a rule between settings; those of one have been held
        raise TinsmithError(str(error.errors()[0].get("ctx", {})["error"])) from None
    return settings, sources(ServerSettings, {name: option(name) for name in given}, os.environ)


def _refuse_what_models_need(arguments: argparse.Namespace, given: Collection[str]) -> None:
    beside = [option(name) for name in LocalSettings.model_fields if name in given]
    if arguments.substitute:
        beside.append("--substitute")
    if beside:
        raise TinsmithError(
            f"--replay answers from a file, without a model: leave out {', '.join(beside)}"
        )


def parse_models(options: Sequence[str]) -> dict[str, str]:
    """`NAME=SOURCE` or `SOURCE`, which is then its own name; names must differ."""
    models: dict[str, str] = {}
    for given in options:
        name, separator, source = given.partition("=")
        if not separator or Path(given).is_dir():  # a folder's own name may hold a =
            name = source = given.rstrip("/") or given
        if not name or not source:
            raise TinsmithError(f"--model must be SOURCE or NAME=SOURCE, got {given!r}")
        if name in models:
            raise TinsmithError(f"--model: the name {name!r} is given twice; use NAME=SOURCE")
        models[name] = source
    return models


def parse_substitutes(options: Sequence[str]) -> dict[str, str]:
    """`ASKED=LOSS` of every --substitute; which losses may stand in is the server's to say."""
    pairs = [given.partition("=") for given in options]
    for given, (asked, _, loss) in zip(options, pairs, strict=True):
        if not asked or not loss:
            raise TinsmithError(f"--substitute must be stable_reinforce=LOSS, got {given!r}")
    return {asked: loss for asked, _, loss in pairs}


def new_api_key() -> str:
    """A key that nobody can guess, in the form that the tinker SDK takes."""
    return f"tml-local-{secrets.token_urlsafe(24)}"


def _api_key(given: str | None) -> tuple[str, bool]:
    key = given or os.environ.get(KEY_VARIABLE)
    if key is None:
        return new_api_key(), True
    if not key.startswith("tml-"):
        raise TinsmithError(
            "--api-key must start with 'tml-', since the tinker SDK refuses other keys"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise TinsmithError(
            "--api-key must be printable ASCII without spaces: it is sent in a header"
        )
    return key, False


def _stop_with_stdin() -> None:
    # Not sys.stdin.read(), whose lock the interpreter wants when it ends.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    from tinsmith.serving import local_server

    if not command:
        raise TinsmithError("no program given; write it behind --, as in: -- python my_program.py")
    if shutil.which(command[0]) is None:
        raise TinsmithError(f"cannot start {command[0]!r}: no such program")
    api_key, _ = _api_key(arguments.api_key)
    settings, _ = _settings(arguments, api_key)
    options = options_of(settings, given_options(arguments, ServerSettings))
    options += [f"--substitute={substitute}" for substitute in arguments.substitute]
    if arguments.replay is not None:
        options.append(f"--replay={arguments.replay}")
    with local_server(settings.models, options, api_key=api_key) as endpoint:
        # Ctrl-C reaches the program too; it decides what to do, and the server outlives it.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = subprocess.Popen(command, env=_for_a_program(endpoint.environment()))
        except OSError as error:
            raise TinsmithError(f"cannot start {command[0]!r}: {error.strerror}") from error
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
        signal.signal(signal.SIGINT, previous)
    return code if code >= 0 else 128 - code


def _for_a_program(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment as it was before Tinsmith was imported, with `changes`."""
    kept = {name: value for name, value in os.environ.items() if name not in SET_BEFORE}
    before = {name: value for name, value in SET_BEFORE.items() if value is not None}
    return {**kept, **before, **changes}


if __name__ == "__main__":
    sys.exit(main())
