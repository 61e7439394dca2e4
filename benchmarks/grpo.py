"""A whole GRPO step of the local backend, through SDK and HTTP, beside TRL's GRPOTrainer.

`python -m benchmarks.grpo`. 16 prompts of 64 tokens, 8 completions of 128 tokens each at
temperature 1, rank 32 on all linear layers (TRL: but the unembedding, which it refuses), one AdamW
step; tokens are those of the completions. A step goes from the prompts to weights that can be
sampled from. The reward, the share of even token ids, is computed by either side for itself.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tinker
from tinker import types
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.arithmetic import RANK, count_weights
from benchmarks.clock import Contender, measure
from benchmarks.entry import run
from benchmarks.harness import (
    MODEL_NAME,
    OURS,
    Arguments,
    Case,
    find_trl,
    parse_arguments,
    report,
    service,
)
from benchmarks.models import END
from benchmarks.training import MICRO_BATCH, TRL_LORA, trl_options
from benchmarks.work import Ask, Row, sampling_client, train

NUM_PROMPTS, NUM_SAMPLES, PROMPT_TOKENS, MAX_TOKENS = 16, 8, 64, 128
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # a token each
CASE = f"{NUM_PROMPTS} x {NUM_SAMPLES} x {MAX_TOKENS} tokens"


def main() -> None:
    arguments = parse_arguments("a GRPO step beside TRL")
    find_trl()
    rng = random.Random(0)
    texts = ["".join(rng.choices(LETTERS, k=PROMPT_TOKENS)) for _ in range(NUM_PROMPTS)]
    texts = texts[:: arguments.every]
    with service(arguments) as (client, directory), tempfile.TemporaryDirectory() as scratch:
        weights = count_weights(directory)
        num_tokens = len(texts) * NUM_SAMPLES * MAX_TOKENS
        sides = {
            OURS: _tinsmith_step(client, directory, texts),
            "TRL GRPOTrainer": _trl_step(arguments, directory, texts, Path(scratch)),
        }
        rows = [Row([0] * (PROMPT_TOKENS + MAX_TOKENS), PROMPT_TOKENS)] * (len(texts) * NUM_SAMPLES)
        asks = [Ask([0] * PROMPT_TOKENS, NUM_SAMPLES, MAX_TOKENS)] * len(texts)
        flops = weights.training_flops(rows) + weights.sampling_flops(asks)
        contenders = [Contender(side, run, num_tokens, flops) for side, run in sides.items()]
        measured = measure(CASE, contenders, arguments.repeats)
    report("GRPO step, LoRA rank 32", arguments, [Case(CASE, measured)])


def reward(tokens: Sequence[int]) -> float:
    """The share of even token ids."""
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def _tinsmith_step(
    client: tinker.ServiceClient, directory: Path, texts: Sequence[str]
) -> Callable[[], None]:
    training = client.create_lora_training_client(MODEL_NAME, rank=RANK, seed=0).result()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert {len(prompt) for prompt in prompts} == {PROMPT_TOKENS}
    params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, stop=[])

    def step() -> None:
        sampler = sampling_client(training)
        inputs = [types.ModelInput.from_ints(prompt) for prompt in prompts]
        futures = [sampler.sample(one, NUM_SAMPLES, params) for one in inputs]
        data = [
            datum
            for prompt, future in zip(prompts, futures, strict=True)
            for datum in _group(prompt, future.result().sequences)
        ]
        train((training, data), loss="importance_sampling", learning_rate=1e-6)

    return step


def _group(prompt: Sequence[int], sequences: Sequence[types.SampledSequence]) -> list[types.Datum]:
    """A_g = (r_g - mean r) / (std r + 1e-4), as TRL has it."""
    rewards_G = np.array([reward(sequence.tokens) for sequence in sequences])
    advantages_G = (rewards_G - rewards_G.mean()) / (rewards_G.std(ddof=1) + 1e-4)
    return [
        _datum(prompt, sequence, float(advantage))
        for sequence, advantage in zip(sequences, advantages_G, strict=True)
    ]


def _datum(prompt: Sequence[int], sequence: types.SampledSequence, advantage: float) -> types.Datum:
    tokens = [*prompt, *sequence.tokens]
    before = np.zeros(len(prompt) - 1, np.float32)
    logprobs = np.concatenate([before, np.array(sequence.logprobs, np.float32)])
    advantages = np.concatenate([before, np.full(len(sequence.tokens), advantage, np.float32)])
    arrays = {
        "target_tokens": np.array(tokens[1:]),
        "logprobs": logprobs,
        "advantages": advantages,
    }
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={name: types.TensorData.from_numpy(array) for name, array in arrays.items()},
    )


def _trl_step(
    arguments: Arguments, directory: Path, texts: Sequence[str], scratch: Path
) -> Callable[[], object]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports] benchmarks alone

    def even(completion_ids: list[list[int]], **_: object) -> list[float]:
        return [reward(tokens) for tokens in completion_ids]

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory, dtype=arguments.dtype),
        reward_funcs=even,
        args=GRPOConfig(
            **trl_options(arguments, scratch),
            gradient_accumulation_steps=len(texts) * NUM_SAMPLES // MICRO_BATCH,
            num_generations=NUM_SAMPLES,
            max_completion_length=MAX_TOKENS,
            generation_kwargs={"min_new_tokens": MAX_TOKENS},
            temperature=1.0,
            top_k=0,
            beta=0.0,
            learning_rate=1e-6,
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=AutoTokenizer.from_pretrained(directory, pad_token=END),
        peft_config=TRL_LORA,
    )
    return trainer.train


if __name__ == "__main__":
    run(main)
