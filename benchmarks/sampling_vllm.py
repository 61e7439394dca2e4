"""Sampling: the local backend's vLLM sampler beside its transformers sampler, by one SDK program.

`python -m benchmarks.sampling_vllm`. Both sides have a LoRA adapter of rank 32 and draw at
temperature 1 without stopping early, so that the number of tokens is fixed. The last case is the
price of a swap: new weights, and the first token drawn from them.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tinker
import torch
from tinker import types

from benchmarks.harness import MODEL_NAME, Contender, make_model, measure, parse_arguments, report
from benchmarks.sampling import Ask, groups, ragged, sample, single
from tinsmith.serving import local_server

SAMPLERS = ("vllm", "transformers")
CASES: dict[str, Callable[[], list[Ask]]] = {
    "64 ragged prompts": ragged,
    "16 prompts x 8 samples": groups,
    "1 prompt": single,
}
NUM_SWAPS = 5


def main() -> None:
    arguments = parse_arguments("the vLLM sampler beside the transformers sampler")
    torch.set_num_threads(arguments.threads)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = arguments.model or make_model(scratch / "model")
        trainers = {
            name: stack.enter_context(_trainer(name, model, scratch, arguments))
            for name in SAMPLERS
        }
        samplers = {
            name: trainer.save_weights_and_get_sampling_client().result()
            for name, trainer in trainers.items()
        }
        results = {}
        for case, make in CASES.items():
            asks = make()
            num_tokens = sum(ask.num_samples * ask.max_tokens for ask in asks)
            sides = [
                Contender(name, _sampling(client, asks), num_tokens)
                for name, client in samplers.items()
            ]
            results[case] = measure(sides, arguments.repeats)
        swaps = [
            Contender(name, _swapping(trainer), NUM_SWAPS) for name, trainer in trainers.items()
        ]
        results[f"{NUM_SWAPS} swaps, a token each"] = measure(swaps, arguments.repeats)
    report("Sampling by vLLM, LoRA rank 32", results, arguments)


@contextmanager
def _trainer(
    sampler: str, model: Path, scratch: Path, arguments: argparse.Namespace
) -> Iterator[tinker.TrainingClient]:
    """A training client of a server with this sampler."""
    options = [f"--threads={arguments.threads}", f"--store={scratch / sampler}"]
    options.append(f"--sampler={sampler}")
    log = scratch / f"{sampler}.log"
    with (
        local_server({MODEL_NAME: str(model)}, options, log=log) as endpoint,
        tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as client,
    ):
        yield client.create_lora_training_client(MODEL_NAME, rank=32, seed=0).result()


def _sampling(client: tinker.SamplingClient, asks: Sequence[Ask]) -> Callable[[], None]:
    return lambda: sample(client, asks)


def _swapping(trainer: tinker.TrainingClient) -> Callable[[], None]:
    def swap() -> None:
        for _ in range(NUM_SWAPS):
            client = trainer.save_weights_and_get_sampling_client().result()
            prompt = types.ModelInput.from_ints([1, 2, 3])
            client.sample(prompt, 1, types.SamplingParams(max_tokens=1, stop=[])).result()

    return swap


if __name__ == "__main__":
    main()
