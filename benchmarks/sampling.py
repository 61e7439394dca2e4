"""Sampling: the local backend, through SDK and HTTP, beside transformers alone.

`python -m benchmarks.sampling`. The backend samples with a LoRA adapter of rank 32; the peers run
the plain base model, without one: transformers' continuous batching, and `generate`, to which the
ratios are. All draw at temperature 1 and never stop early, so that the number of tokens is fixed.
`generate` has one length a batch: it runs until the longest is done, and only the tokens that were
asked for count; 1,000 prompts go through it 64 at a time.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tinker
import torch
from tinker import types
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.harness import MODEL_NAME, Contender, measure, parse_arguments, report, service

VOCABULARY = 256  # bytes
MAX_ROWS = 64  # of one call of generate


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, how many completions of it, and of what length."""

    prompt: list[int]
    num_samples: int
    max_tokens: int


def main() -> None:
    arguments = parse_arguments("sampling beside transformers")
    cases = {
        "64 ragged prompts": ragged(),
        "16 prompts x 8 samples": groups(),
        "1 prompt": single(),
        "1,000 prompts at once": concurrent(),
    }
    with service(arguments) as (client, directory):
        results = {
            name: measure(
                _contenders(client, directory, asks[:: arguments.every]), arguments.repeats
            )
            for name, asks in cases.items()
        }
    report("Sampling, float32, LoRA rank 32", results, arguments)


def ragged() -> list[Ask]:
    """64 prompts of 8 to 64 tokens, completions of 16 to 128."""
    rng = random.Random(0)
    return [Ask(_prompt(rng, rng.randint(8, 64)), 1, rng.randint(16, 128)) for _ in range(64)]


def groups() -> list[Ask]:
    """16 prompts of 64 tokens, 8 completions of 128 tokens each."""
    rng = random.Random(1)
    return [Ask(_prompt(rng, 64), 8, 128) for _ in range(16)]


def single() -> list[Ask]:
    """One prompt of 64 tokens, one completion of 128."""
    return [Ask(_prompt(random.Random(2), 64), 1, 128)]


def concurrent() -> list[Ask]:
    """1,000 prompts of 8 to 64 tokens, completions of 16 tokens."""
    rng = random.Random(3)
    return [Ask(_prompt(rng, rng.randint(8, 64)), 1, 16) for _ in range(1000)]


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def _contenders(
    client: tinker.ServiceClient, directory: Path, asks: Sequence[Ask]
) -> list[Contender]:
    training = client.create_lora_training_client(MODEL_NAME, rank=32, seed=0).result()
    sampler = training.save_weights_and_get_sampling_client()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    num_tokens = sum(ask.num_samples * ask.max_tokens for ask in asks)
    return [
        Contender("tinsmith serve (tinker SDK)", lambda: sample(sampler, asks), num_tokens),
        Contender(
            "transformers continuous batching",
            lambda: _generate_continuously(model, asks),
            num_tokens,
        ),
        Contender("Hugging Face generate", lambda: _generate_all(model, asks), num_tokens),
    ]


def sample(sampler: tinker.SamplingClient, asks: Sequence[Ask]) -> None:
    futures = [
        sampler.sample(
            types.ModelInput.from_ints(ask.prompt),
            num_samples=ask.num_samples,
            sampling_params=types.SamplingParams(max_tokens=ask.max_tokens, stop=[], seed=i),
        )
        for i, ask in enumerate(asks)
    ]
    for ask, future in zip(asks, futures, strict=True):
        lengths = {len(sequence.tokens) for sequence in future.result().sequences}
        assert lengths == {ask.max_tokens}, lengths


@torch.inference_mode()
def _generate_continuously(model: torch.nn.Module, asks: Sequence[Ask]) -> None:
    """A call for each length that is asked for, since a batch has one."""
    for count in sorted({ask.max_tokens for ask in asks}):
        prompts = [a.prompt for a in asks if a.max_tokens == count for _ in range(a.num_samples)]
        config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=count, eos_token_id=-1, pad_token_id=0
        )
        outputs = model.generate_batch(prompts, generation_config=config)  # pyright: ignore[reportCallIssue] untyped in transformers
        assert all(len(output.generated_tokens) == count for output in outputs.values())
        assert len(outputs) == len(prompts)


def _generate_all(model: torch.nn.Module, asks: Sequence[Ask]) -> None:
    for start in range(0, len(asks), MAX_ROWS):
        _generate(model, asks[start : start + MAX_ROWS])


@torch.inference_mode()
def _generate(model: torch.nn.Module, asks: Sequence[Ask]) -> None:
    prompts = [ask.prompt for ask in asks for _ in range(ask.num_samples)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    count = max(ask.max_tokens for ask in asks)
    output = model.generate(  # pyright: ignore[reportCallIssue] untyped in transformers
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        min_new_tokens=count,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert output.shape[1] == longest + count


if __name__ == "__main__":
    main()
