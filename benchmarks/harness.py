"""What every benchmark shares: its options, the server, the table and the JSON."""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tinker
import torch

from benchmarks.arithmetic import product_rates
from benchmarks.clock import Measurement
from benchmarks.models import FOR_A_CPU, PRESETS, make_model
from benchmarks.results import MEASURED
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json
from tinsmith.metadata import git_commit
from tinsmith.processor import processor
from tinsmith.serving import Endpoint, local_server

ROOT = Path(__file__).parents[1]
MODEL_NAME = "bench"
OURS = "tinsmith serve (tinker SDK)"


@dataclass(frozen=True, slots=True)
class Arguments:
    """The options of a benchmark."""

    preset: str
    device: str
    threads: int
    repeats: int
    every: int
    cases: tuple[str, ...]
    left_out: tuple[str, ...]
    json: Path | None

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16


@dataclass(frozen=True, slots=True)
class Case:
    """The sides of one comparison, the last of them the peer."""

    name: str
    sides: Sequence[Measurement]


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value that belongs to no comparison."""

    name: str
    value: float
    unit: str


def parse_arguments(
    description: str,
    cases: Sequence[str] = (),
    *,
    repeats: int = 3,
    has_trial: bool = True,
    argv: Sequence[str] | None = None,
) -> Arguments:
    """Options of a benchmark; a model that the machine cannot compute is refused here.

    `cases` are those that --case chooses from; `has_trial` says whether there are sequences of
    which --every takes some.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=PRESETS, default="29m", help="size of the random Qwen3")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda above 100m")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of a side")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of each side")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.set_defaults(every=1, case=None)
    if has_trial:
        parser.add_argument("--every", type=int, help="take each Nth sequence only: a trial")
    if cases:
        parser.add_argument("--case", action="append", choices=cases, help="only this; repeatable")
    given = parser.parse_args(argv)
    for name in ("threads", "repeats", "every"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(given, name)}")
    device = given.device or ("cpu" if given.preset in FOR_A_CPU else "cuda")
    if device == "cpu" and given.preset not in FOR_A_CPU:
        parser.error(f"--preset {given.preset} is for a GPU; on a CPU: {', '.join(FOR_A_CPU)}")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--preset {given.preset} on cuda needs a CUDA GPU, and torch sees none here; "
            f"on a CPU: --device cpu with --preset {', '.join(FOR_A_CPU)}"
        )
    torch.set_num_threads(given.threads)
    chosen = tuple(given.case or cases)
    return Arguments(
        preset=given.preset,
        device=device,
        threads=given.threads,
        repeats=given.repeats,
        every=given.every,
        cases=chosen,
        left_out=tuple(case for case in cases if case not in chosen),
        json=given.json,
    )


@contextmanager
def scratch_model(arguments: Arguments) -> Iterator[tuple[Path, Path]]:
    """A folder that is removed at the end, and the model's directory in it."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        yield scratch, make_model(scratch / "model", arguments.preset, arguments.device)


@contextmanager
def server(
    arguments: Arguments, scratch: Path, models: Mapping[str, str], *options: str
) -> Iterator[Endpoint]:
    """`tinsmith serve` on these models; its store and its log lie in `scratch`."""
    common = [f"--threads={arguments.threads}", f"--device={arguments.device}"]
    common += [f"--store={scratch / 'store'}", *options]
    with local_server(models, common, log=scratch / "server.log") as endpoint:
        os.environ.update(endpoint.environment())
        yield endpoint


@contextmanager
def service(arguments: Arguments) -> Iterator[tuple[tinker.ServiceClient, Path]]:
    """A server on the benchmark's model, and the model's directory."""
    with (
        scratch_model(arguments) as (scratch, directory),
        server(arguments, scratch, {MODEL_NAME: str(directory)}),
        tinker.ServiceClient() as client,
    ):
        yield client, directory


def find_trl() -> None:
    """Make `import trl` work: what `make bench` installed for the benchmarks alone."""
    folder = ROOT / ".venvs" / "trl"
    if not folder.is_dir():
        raise TinsmithError(f"there is no TRL in {folder}; make .venvs/trl.stamp installs it")
    sys.path.append(str(folder))


def find_python(name: str) -> Path:
    """The interpreter of a peer's environment."""
    python = ROOT / ".venvs" / name / "bin" / "python"
    if not python.is_file():
        raise TinsmithError(f"there is no {python}; make .venvs/{name}/stamp installs it")
    return python


def hardware() -> dict[str, str]:
    """The machine and the versions that the figures belong to."""
    names = ("torch", "transformers", "peft", "tinker")
    return {
        "cpu": f"{processor()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def report(
    title: str,
    arguments: Arguments,
    cases: Sequence[Case] = (),
    figures: Sequence[Figure] = (),
) -> None:
    """Print the cases, ratios to the last side (the peer), and the figures; write JSON if asked."""
    rate = None
    if any(side.flops for case in cases for side in case.sides):
        rate = max(product_rates(arguments.device, arguments.repeats).values())
    print(f"\n{title}\n" + ", ".join(f"{k} {v}" for k, v in hardware().items()))
    print(
        f"model {arguments.preset} on {arguments.device}, {arguments.threads} threads a side, "
        f"medians of {arguments.repeats} after a warm-up"
    )
    if rate is not None:
        print(f"matrix products at up to {rate / 1e9:.0f} GFLOP/s, of which `share` is the share")
    if cases:
        head = f"{'case':<36}{'side':<36}{'tokens':>8}{'seconds':>9}{'tokens/s':>10}"
        print(f"\n{head}{'ratio':>7}{'share':>7}")
    for case in cases:
        for side in case.sides:
            ratio = side.tokens_per_s / case.sides[-1].tokens_per_s
            share = f"{side.flops / side.median_s / rate:.2f}" if side.flops and rate else ""
            print(
                f"{case.name:<36}{side.name:<36}{side.num_tokens:>8}{side.median_s:>9.2f}"
                f"{side.tokens_per_s:>10.0f}{ratio:>7.2f}{share:>7}"
            )
    for figure in figures:
        print(f"{figure.name}: {figure.value:.4g} {figure.unit}")
    if arguments.json:
        write_json(arguments.json, _record(title, arguments, cases, figures, rate))


def _record(
    title: str,
    arguments: Arguments,
    cases: Sequence[Case],
    figures: Sequence[Figure],
    rate: float | None,
) -> dict[str, Any]:
    spec = sys.modules["__main__"].__spec__
    assert spec is not None  # run with `python -m`
    settings = {key: value for key, value in asdict(arguments).items() if key != "json"}
    return {
        "title": title,
        "command": f"python -m {spec.name}",
        # What one command wrote is no change to the code of the next.
        "commit": git_commit(besides=str(MEASURED.relative_to(ROOT))),
        "hardware": hardware(),
        "settings": settings,
        "product_flops_per_s": rate,
        "cases": [asdict(case) for case in cases],
        "figures": [asdict(figure) for figure in figures],
    }
