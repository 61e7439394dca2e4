"""What every benchmark shares: the model, the server, the clock and the table."""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import tinker
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tinsmith.errors import TinsmithError
from tinsmith.files import write_json
from tinsmith.serving import local_server

MODEL_NAME = "bench"


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison: what runs, and how many useful tokens a run handles."""

    name: str
    run: Callable[[], object]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Median seconds of several runs after a warm-up, and tokens per second from it."""

    name: str
    num_tokens: int
    median_s: float
    runs_s: list[float]

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.median_s


def parse_arguments(description: str) -> argparse.Namespace:
    """Options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, help="directory (default: a random 29M Qwen3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of a side")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--every", type=int, default=1, help="take each Nth sequence only: a trial")
    return parser.parse_args()


@contextmanager
def service(arguments: argparse.Namespace) -> Iterator[tuple[tinker.ServiceClient, Path]]:
    """A server on the benchmark's model, and the model's directory."""
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.model or make_model(Path(scratch) / "model")
        options = [f"--threads={arguments.threads}", f"--store={scratch}/store"]
        log = Path(scratch) / "server.log"
        with local_server({MODEL_NAME: str(directory)}, options, log=log) as endpoint:
            os.environ.update(endpoint.environment())
            with tinker.ServiceClient() as client:
                yield client, directory


def make_model(directory: Path) -> Path:
    """A random Qwen3 of 29.4M parameters with a vocabulary of 8192 (bytes, and nothing else)."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(
        directory
    )
    return directory


def measure(contenders: list[Contender], repeats: int) -> list[Measurement]:
    """Warm each side up once, then time the sides in turn, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for round_ in tqdm(range(repeats + 1), desc="rounds (the first warms up)"):
        for contender in contenders:
            start = time.perf_counter()
            contender.run()
            if round_ > 0:
                seconds[contender.name].append(time.perf_counter() - start)
    return [
        Measurement(c.name, c.num_tokens, statistics.median(seconds[c.name]), seconds[c.name])
        for c in contenders
    ]


def find_trl() -> None:
    """Make `import trl` work: what `make bench` installed for the benchmarks alone."""
    folder = Path(__file__).parents[1] / ".venvs" / "trl"
    if not folder.is_dir():
        raise TinsmithError(f"there is no TRL in {folder}; make .venvs/trl.stamp installs it")
    sys.path.append(str(folder))


def hardware() -> dict[str, str]:
    """The machine and the versions that the figures belong to."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")),
        platform.machine(),
    )
    names = ("torch", "transformers", "peft", "tinker")
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def report(
    title: str, results: Mapping[str, list[Measurement]], arguments: argparse.Namespace
) -> None:
    """Print a table a case, ratios to the last contender (the peer); write JSON if asked."""
    print(f"\n{title}\n" + ", ".join(f"{k} {v}" for k, v in hardware().items()))
    print(f"{arguments.threads} threads a side, medians of {arguments.repeats} after a warm-up\n")
    print(f"{'case':<28}{'side':<36}{'tokens':>8}{'seconds':>9}{'tokens/s':>10}{'ratio':>7}")
    for case, measurements in results.items():
        peer = measurements[-1].tokens_per_s
        for m in measurements:
            print(
                f"{case:<28}{m.name:<36}{m.num_tokens:>8}{m.median_s:>9.2f}"
                f"{m.tokens_per_s:>10.0f}{m.tokens_per_s / peer:>7.2f}"
            )
    if arguments.json:
        figures = {case: [asdict(m) for m in results[case]] for case in results}
        write_json(arguments.json, {"title": title, "hardware": hardware(), "results": figures})


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
