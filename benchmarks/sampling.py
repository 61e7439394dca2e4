"""Sampling: the local backend, through SDK and HTTP, beside transformers alone.

`python -m benchmarks.sampling`. The backend samples with a LoRA adapter of rank 32; the peers run
the plain base model, without one: transformers' continuous batching, and `generate`, to which the
ratios are. All draw at temperature 1 and never stop early, so that the number of tokens is fixed.
`generate` has one length a batch: it runs until the longest is done, and only the tokens that were
asked for count; 1,000 prompts go through it 64 at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tinker
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.arithmetic import RANK, count_weights
from benchmarks.clock import Contender, measure
from benchmarks.entry import run
from benchmarks.harness import (
    MODEL_NAME,
    OURS,
    Case,
    parse_arguments,
    report,
    service,
)
from benchmarks.work import (
    Ask,
    grouped_asks,
    many_asks,
    ragged_asks,
    sample,
    sampling_client,
    single_ask,
)

MAX_ROWS = 64  # of one call of generate
MAX_CONTINUOUS_ROWS, MAX_BATCH_TOKENS, PAGE_TOKENS = 256, 1024, 32
CASES: dict[str, Callable[[], list[Ask]]] = {
    "64 ragged prompts": ragged_asks,
    "16 prompts x 8 samples": grouped_asks,
    "1 prompt": single_ask,
    "1,000 prompts at once": many_asks,
}


def main() -> None:
    arguments = parse_arguments("sampling beside transformers", list(CASES))
    with service(arguments) as (client, directory):
        weights = count_weights(directory)
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=arguments.dtype).eval()
        model.to(arguments.device)
        results = []
        for name in arguments.cases:
            asks = CASES[name]()[:: arguments.every]
            contenders = _contenders(client, model, asks, weights.sampling_flops(asks))
            results.append(Case(name, measure(name, contenders, arguments.repeats)))
    report("Sampling, LoRA rank 32", arguments, results)


def _contenders(
    client: tinker.ServiceClient, model: Any, asks: Sequence[Ask], flops: float
) -> list[Contender]:
    training = client.create_lora_training_client(MODEL_NAME, rank=RANK, seed=0).result()
    sampler = sampling_client(training)
    cache = _cache_for(asks)
    model.destroy_cached_continuous_batching_manager()  # of the case before
    sides = {
        OURS: lambda: sample((sampler, asks)),
        "transformers continuous batching": lambda: _generate_continuously(model, asks, cache),
        "Hugging Face generate": lambda: _generate_all(model, asks),
    }
    num_tokens = sum(ask.num_tokens for ask in asks)
    return [Contender(name, run, num_tokens, flops) for name, run in sides.items()]


def _generate_continuously(
    model: Any, asks: Sequence[Ask], cache: ContinuousBatchingConfig
) -> None:
    """Rows join and leave as they come and end; each has a length of its own."""
    config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=cache, persistent_manager=True
    ) as manager:
        lengths = {
            manager.add_request(ask.prompt, max_new_tokens=ask.max_tokens): ask.max_tokens
            for ask in asks
            for _ in range(ask.num_samples)
        }
        while lengths:
            output = manager.get_result(timeout=1)
            if output is None:
                assert manager.is_running()
            elif output.is_finished():
                assert output.error is None, output.error
                assert len(output.generated_tokens) == lengths.pop(output.request_id)


def _cache_for(asks: Sequence[Ask]) -> ContinuousBatchingConfig:
    """A cache with twice what a batch's rows need; by default it would take most of the memory."""
    longest = max(len(ask.prompt) + ask.max_tokens for ask in asks)
    num_rows = min(MAX_CONTINUOUS_ROWS, sum(ask.num_samples for ask in asks))
    return ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=2 * num_rows * -(-longest // PAGE_TOKENS),
        max_batch_tokens=MAX_BATCH_TOKENS,
        max_requests_per_batch=num_rows,
    )


def _generate_all(model: Any, asks: Sequence[Ask]) -> None:
    for start in range(0, len(asks), MAX_ROWS):
        _generate(model, asks[start : start + MAX_ROWS])


@torch.inference_mode()
def _generate(model: Any, asks: Sequence[Ask]) -> None:
    prompts = [ask.prompt for ask in asks for _ in range(ask.num_samples)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    count = max(ask.max_tokens for ask in asks)
    output = model.generate(
        ids,
        attention_mask=mask.to(model.device),
        do_sample=True,
        top_k=0,
        min_new_tokens=count,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert output.cpu().shape[1] == longest + count


if __name__ == "__main__":
    run(main)
