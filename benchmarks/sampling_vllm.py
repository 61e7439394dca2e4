"""Sampling: both samplers of the local backend, by one SDK program, beside vLLM alone.

`python -m benchmarks.sampling_vllm`. The backend's sides have a LoRA adapter of rank 32; vLLM
alone, to which the ratios are, is called in its own process with the plain base model and its own
defaults, and returns no log-probabilities. All draw at temperature 1 without stopping early, so
that the number of tokens is fixed. The last case is the price of a swap: new weights, and the first
token drawn from them (vLLM alone knows none).
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import tinker

from benchmarks.arithmetic import RANK, count_weights
from benchmarks.clock import Contender, measure
from benchmarks.entry import run
from benchmarks.harness import (
    MODEL_NAME,
    Arguments,
    Case,
    find_python,
    parse_arguments,
    report,
    scratch_model,
    server,
)
from benchmarks.models import CONTEXT_LENGTH
from benchmarks.sampling import CASES
from benchmarks.work import Ask, sample, sampling_client, single_ask

SAMPLERS = ("transformers", "vllm")
NUM_SWAPS = 5
SWAPS = f"{NUM_SWAPS} swaps, a token from each"
WANTED = ("64 ragged prompts", "16 prompts x 8 samples", "1 prompt", SWAPS)
GPU_SHARE = 0.3  # of its memory, for each of two engines beside two trainers


def main() -> None:
    arguments = parse_arguments("both samplers beside vLLM alone", WANTED)
    with ExitStack() as stack:
        scratch, model = stack.enter_context(scratch_model(arguments))
        weights = count_weights(model)
        trainers = {
            f"tinsmith serve, sampler: {name}": stack.enter_context(
                _trainer(name, model, scratch / name, arguments)
            )
            for name in SAMPLERS
        }
        samplers = {name: sampling_client(trainer) for name, trainer in trainers.items()}
        alone = stack.enter_context(_vllm_alone(model, arguments))
        results = []
        for case in arguments.cases:
            if case == SWAPS:
                sides = [Contender(n, partial(_swap, t), NUM_SWAPS) for n, t in trainers.items()]
                results.append(Case(case, measure(case, sides, arguments.repeats)))
                continue
            asks = CASES[case]()[:: arguments.every]
            runs = {name: partial(sample, (client, asks)) for name, client in samplers.items()}
            runs["vLLM alone, no adapter"] = partial(alone, asks)
            size, flops = sum(ask.num_tokens for ask in asks), weights.sampling_flops(asks)
            sides = [Contender(name, run, size, flops) for name, run in runs.items()]
            results.append(Case(case, measure(case, sides, arguments.repeats)))
    report("Sampling beside vLLM, LoRA rank 32", arguments, results)


@contextmanager
def _trainer(
    sampler: str, model: Path, scratch: Path, arguments: Arguments
) -> Iterator[tinker.TrainingClient]:
    """A training client of a server with this sampler, which has sampled once."""
    scratch.mkdir()
    options = [f"--sampler={sampler}", f"--vllm-gpu-memory-utilization={GPU_SHARE}"]
    with (
        server(arguments, scratch, {MODEL_NAME: str(model)}, *options) as endpoint,
        tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as client,
    ):
        training = client.create_lora_training_client(MODEL_NAME, rank=RANK, seed=0).result()
        sample((sampling_client(training), single_ask()))  # an engine starts when it is needed
        yield training


@contextmanager
def _vllm_alone(model: Path, arguments: Arguments) -> Iterator[Callable[[Sequence[Ask]], None]]:
    """vLLM in its own environment, as a function that samples."""
    settings = {
        "model": str(model),
        "dtype": str(arguments.dtype).removeprefix("torch."),
        "max_model_len": CONTEXT_LENGTH,
        "generation_config": "vllm",
        "gpu_memory_utilization": GPU_SHARE,
    }
    python = find_python("vllm-cpu" if arguments.device == "cpu" else "vllm-cuda")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": str(arguments.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    program = str(Path(__file__).with_name("vllm_alone.py"))
    process = subprocess.Popen(
        [python, "-P", program, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    assert stdout.readline() == "ready\n"

    def ask(asks: Sequence[Ask]) -> None:
        print(json.dumps([[a.prompt, a.num_samples, a.max_tokens] for a in asks]), file=stdin)
        stdin.flush()
        assert stdout.readline() == "done\n"

    try:
        yield ask
    finally:
        stdin.close()
        process.wait(timeout=60)


def _swap(trainer: tinker.TrainingClient) -> None:
    """New weights, and a token drawn from them, some times."""
    for _ in range(NUM_SWAPS):
        sample((sampling_client(trainer), [Ask([1, 2, 3], 1, 1)]))


if __name__ == "__main__":
    run(main)
