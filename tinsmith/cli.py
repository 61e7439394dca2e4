"""The command `tinsmith`: serve a local backend, or run a program against one."""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tinsmith import __version__
from tinsmith.errors import TinsmithError

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
    _add_server_options(serve, default_port=8000)
    serve.add_argument("--stop-with-stdin", action="store_true", help="stop when stdin is closed")
    run = commands.add_parser(
        "run",
        help="serve, run a program against the server, stop",
        usage="tinsmith run --model MODEL [options] -- COMMAND ...",
    )
    _add_server_options(run, default_port=0)
    show = commands.add_parser("show", help="page through what a training stage sampled")
    show.add_argument("folder", type=Path, help="results/<run>/<stage>")
    show.add_argument("--step", type=int, help="0-based (default: the last)")
    show.add_argument("--sort", default="group", choices=["group", "reward", "advantage", "length"],
        help="highest first; group: as they were sampled (default: group)")  # fmt: skip
    show.add_argument("--limit", type=_positive, metavar="N", help="show N samples (default: all)")
    return parser


def _add_server_options(parser: argparse.ArgumentParser, default_port: int) -> None:
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="[NAME=]DIR_OR_HUB_ID",
        help="a base model; may be repeated (default name: as given)")  # fmt: skip
    add("--store", type=Path, default=Path("store"), help="runs and checkpoints (default: store)")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=default_port, help="0 takes a free one (default: %(default)s)")
    add("--api-key", help=f"key that clients must send, tml-...; default: ${KEY_VARIABLE}, else "
        "a random one, printed at start")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
        help="of the base model (default: auto: bfloat16 on a GPU, float32 on a CPU)")  # fmt: skip
    add("--lora-alpha", type=float, default=32.0, help="scale of adapters (default: 32)")
    add("--token-budget", type=_token_budget, default="auto", metavar="N",
        help="tokens of one micro-batch or prefill; bounds memory (default: auto)")  # fmt: skip
    add("--log-format", default="text", choices=["text", "json"], help="default: text")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"],
        help="debug logs every request, info those refused (default: info)")  # fmt: skip
    add("--threads", type=int, help="CPU threads of one operation (default: torch's own)")
    add("--substitute", action="append", default=[], metavar="stable_reinforce=LOSS",
        help="let cispo, ppo or importance_sampling stand in for a loss whose formula is not "
        "published (default: refuse it)")  # fmt: skip


def _positive(text: str) -> int:
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")


def _token_budget(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def _show(arguments: argparse.Namespace) -> None:
    from tinsmith.show import show

    show(arguments.folder, arguments.step, arguments.sort, arguments.limit)


def _serve(arguments: argparse.Namespace) -> None:
    for variable in ("USE_TF", "USE_FLAX"):
        os.environ.setdefault(variable, "0")
    from tinsmith.backend.server import serve  # torch is imported here, after bad options are said
    from tinsmith.backend.settings import ServerSettings

    api_key, is_generated = _api_key(arguments.api_key)
    settings = ServerSettings(
        models=parse_models(arguments.model),
        store=arguments.store,
        api_key=api_key,
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
        dtype=arguments.dtype,
        lora_alpha=arguments.lora_alpha,
        token_budget=None if arguments.token_budget == "auto" else arguments.token_budget,
        threads=arguments.threads,
        log_format=arguments.log_format,
        log_level=arguments.log_level,
        substitutes=parse_substitutes(arguments.substitute),
    )
    if arguments.stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    if is_generated:
        print(f"TINKER_API_KEY={api_key}", flush=True)
    serve(settings)


def parse_models(options: Sequence[str]) -> dict[str, str]:
    """`NAME=SOURCE` or `SOURCE`, which is then its own name; names must differ."""
    models: dict[str, str] = {}
    for option in options:
        name, separator, source = option.partition("=")
        if not separator or Path(option).is_dir():  # a folder's own name may hold a =
            name = source = option.rstrip("/") or option
        if not name or not source:
            raise TinsmithError(f"--model must be SOURCE or NAME=SOURCE, got {option!r}")
        if name in models:
            raise TinsmithError(f"--model: the name {name!r} is given twice; use NAME=SOURCE")
        models[name] = source
    return models


def parse_substitutes(options: Sequence[str]) -> dict[str, str]:
    """`ASKED=LOSS` of every --substitute; which losses may stand in is the server's to say."""
    pairs = [option.partition("=") for option in options]
    for option, (asked, _, loss) in zip(options, pairs, strict=True):
        if not asked or not loss:
            raise TinsmithError(f"--substitute must be stable_reinforce=LOSS, got {option!r}")
    return {asked: loss for asked, _, loss in pairs}


def _api_key(given: str | None) -> tuple[str, bool]:
    key = given or os.environ.get(KEY_VARIABLE)
    if key is None:
        return f"tml-local-{secrets.token_urlsafe(24)}", True
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
    os.kill(os.getpid(), signal.SIGTERM)


def _run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    from tinsmith.serving import local_server

    if not command:
        raise TinsmithError("no program given; write it behind --, as in: -- python my_program.py")
    if shutil.which(command[0]) is None:
        raise TinsmithError(f"cannot start {command[0]!r}: no such program")
    api_key, _ = _api_key(arguments.api_key)
    options = [f"--{name}={getattr(arguments, name)}" for name in ("host", "port", "device")]
    options += [f"--dtype={arguments.dtype}", f"--lora-alpha={arguments.lora_alpha}"]
    options += [f"--token-budget={arguments.token_budget}", f"--store={arguments.store}"]
    options += [f"--log-format={arguments.log_format}", f"--log-level={arguments.log_level}"]
    if arguments.threads is not None:
        options.append(f"--threads={arguments.threads}")
    options += [f"--substitute={substitute}" for substitute in arguments.substitute]
    models = parse_models(arguments.model)
    with local_server(models, options, api_key=api_key) as endpoint:
        # Ctrl-C reaches the program too; it decides what to do, and the server outlives it.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = subprocess.Popen(command, env=os.environ | endpoint.environment())
        except OSError as error:
            raise TinsmithError(f"cannot start {command[0]!r}: {error.strerror}") from error
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
        signal.signal(signal.SIGINT, previous)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
