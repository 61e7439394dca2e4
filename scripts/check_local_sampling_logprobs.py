"""Do the sampler's log-probabilities mean what a trainer takes them for?

    python -m scripts.check_local_sampling_logprobs --model models/Qwen__Qwen3-0.6B
    python -m scripts.check_local_sampling_logprobs --base-url URL --base-model NAME [--model DIR]

Samples completions and scores the same tokens again, teacher-forced: by the backend's trainer, by
its sampler's own pass over a prompt, and, where the model's directory is at hand, by plain
transformers. The first two score at temperature 1 without truncation only. Exits with 1 when a mean
difference is above --threshold, with 2 when there is nothing to compare.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tinker

from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError
from tinsmith.models import check_model_directory
from tinsmith.serving import local_server

PROMPTS = (
    "What is 27 + 58?",
    "Name three rivers of Europe.",
    "Explain in one sentence why the sky is blue.",
    "Write a short poem about tin.",
)
SAMPLES_PER_PROMPT = 4


@dataclass(frozen=True, slots=True)
class Sampled:
    """A completion, its prompt, and the sampler's log-probability of each of its tokens."""

    prompt: list[int]
    completion: list[int]
    logprobs: np.ndarray

    @property
    def tokens(self) -> list[int]:
        """The prompt and the completion."""
        return [*self.prompt, *self.completion]


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the sampler's log-probabilities q and another's p of the same tokens, in nats.

    `kl_nats` = mean_t(log q_t - log p_t) over tokens drawn from q, an unbiased estimate of
    KL(q || p). `num_outside` tokens are not among those that the other would have sampled from.
    """

    num_tokens: int
    num_outside: int
    largest: float
    mean: float
    kl_nats: float

    @classmethod
    def between(cls, sampler_T: np.ndarray, other_T: np.ndarray) -> "Difference":
        inside = np.isfinite(other_T)
        gaps = sampler_T[inside] - other_T[inside]
        sizes = np.abs(gaps) if inside.any() else np.array([np.inf])
        kl_nats = float(gaps.mean()) if inside.all() else float("inf")
        return cls(
            len(inside), int((~inside).sum()), float(sizes.max()), float(sizes.mean()), kl_nats
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, compare, print; returns the exit code."""
    args = _parse(argv)
    try:
        return _check(args)
    except (TinsmithError, tinker.TinkerError) as error:
        print(f"check_local_sampling_logprobs: {error}", file=sys.stderr)
        return 2


def _check(args: argparse.Namespace) -> int:
    is_plain = (args.temperature, args.top_k, args.top_p) == (1.0, -1, 1.0)
    if args.model is None and not is_plain:
        raise TinsmithError(
            "--temperature, --top-k and --top-p need --model, a directory whose logits can be"
            " treated alike; a backend scores at temperature 1 only"
        )
    if args.model is not None:
        check_model_directory(args.model)
    with _connect(args) as (service, base_model):
        samples = _sample(service, base_model, args)
        scorers: dict[str, Callable[[Sampled], np.ndarray]] = {}
        if is_plain:
            scorers["trainer"] = _trainer(service, base_model)
            scorers["sampler, as a prompt"] = _prefill(service, base_model)
        if args.model is not None:
            scorers["transformers"] = _transformers(args)
        print(f"{len(samples)} completions of {base_model}, temperature {args.temperature},"
              f" top_k {args.top_k}, top_p {args.top_p}")  # fmt: skip
        return _report(samples, scorers, args.threshold)


@contextmanager
def _connect(args: argparse.Namespace) -> Iterator[tuple[tinker.ServiceClient, str]]:
    """A client of the running backend, or of one that is started for the directory."""
    if args.base_url is not None:
        if not args.base_model:
            raise TinsmithError("--base-url needs --base-model, the name that the backend serves")
        with tinker.ServiceClient(base_url=args.base_url, api_key=args.api_key) as service:
            yield service, args.base_model
        return
    if args.model is None:
        raise TinsmithError("give --model DIR, or --base-url and --base-model of a backend")
    name = args.base_model or args.model.name
    with (
        tempfile.TemporaryDirectory() as store,
        local_server(
            {name: str(args.model)},
            [f"--device={args.device}", f"--dtype={args.dtype}", f"--store={store}", "--min-p=0"],
        ) as endpoint,
    ):
        os.environ.update(endpoint.environment())
        with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
            yield service, name


def _sample(
    service: tinker.ServiceClient, base_model: str, args: argparse.Namespace
) -> list[Sampled]:
    client = service.create_sampling_client(base_model=base_model).result()
    params = {"top_k": args.top_k, "top_p": args.top_p, "temperature": args.temperature}
    prompts = _prompts(args)
    pending = [
        client.sample(
            prompt=tinker.ModelInput.from_ints(prompt),
            num_samples=SAMPLES_PER_PROMPT,
            sampling_params=tinker.SamplingParams(
                max_tokens=args.max_tokens, seed=args.seed + i, stop=[], **params
            ),
        )
        for i, prompt in enumerate(prompts)
    ]
    return [
        Sampled(prompt, list(sequence.tokens), np.array(sequence.logprobs, dtype=np.float64))
        for prompt, future in zip(prompts, pending, strict=True)
        for sequence in future.result().sequences
    ]


def _prompts(args: argparse.Namespace) -> list[list[int]]:
    """Chat prompts where the model's tokenizer is at hand, else tokens that every model has."""
    if args.model is not None:
        chat = Chat.load(args.model)
        return [list(chat.prompt(text)) for text in args.prompt or PROMPTS]
    if args.prompt:
        raise TinsmithError("--prompt needs --model, whose tokenizer reads it")
    rng = np.random.default_rng(args.seed)
    return [rng.integers(5, 200, size=24).tolist() for _ in PROMPTS]


def _trainer(service: tinker.ServiceClient, base_model: str) -> Callable[[Sampled], np.ndarray]:
    """Scores by `forward` of a new adapter, which leaves the base model as it is."""
    client = service.create_lora_training_client(base_model=base_model, rank=1).result()

    def score(sampled: Sampled) -> np.ndarray:
        targets = np.array(sampled.tokens[1:], dtype=np.int64)
        inputs = {
            "target_tokens": tinker.TensorData.from_numpy(targets),
            "weights": tinker.TensorData.from_numpy(np.ones(len(targets), dtype=np.float32)),
        }
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(sampled.tokens[:-1]), loss_fn_inputs=inputs
        )
        [output] = client.forward([datum], "cross_entropy").result().loss_fn_outputs
        return np.array(output["logprobs"].data[-len(sampled.completion) :])

    return score


def _prefill(service: tinker.ServiceClient, base_model: str) -> Callable[[Sampled], np.ndarray]:
    """Scores by the sampler's own pass over the completion as a part of a prompt."""
    client = service.create_sampling_client(base_model=base_model).result()

    def score(sampled: Sampled) -> np.ndarray:
        prompt = tinker.ModelInput.from_ints(sampled.tokens)
        logprobs = client.compute_logprobs(prompt).result()
        return np.array(logprobs[-len(sampled.completion) :], dtype=np.float64)

    return score


def _transformers(args: argparse.Namespace) -> Callable[[Sampled], np.ndarray]:
    """Scores by plain transformers in float32, tempered and truncated as the sampler was told."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()

    def score(sampled: Sampled) -> np.ndarray:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([sampled.tokens[:-1]])).logits[0].double()
        logits_TV = logits_TV[-len(sampled.completion) :].numpy()
        rows = zip(logits_TV, sampled.completion, strict=True)
        settings = (args.temperature, args.top_k, args.top_p)
        return np.array([sampled_logprob(logits_V, token, *settings) for logits_V, token in rows])

    return score


def sampled_logprob(
    logits_V: np.ndarray, token: int, temperature: float, top_k: int, top_p: float
) -> float:
    """The log-probability with which a token is sampled; -inf for one that never is.

    Logits are divided by the temperature; the top_k likeliest are kept (-1: all), of those the
    fewest whose probabilities reach top_p, and what is kept is normalised. Greedy sampling
    (temperature 0) has the log-probabilities of temperature 1, as the backend gives them.
    """
    if temperature == 0:
        temperature, top_k, top_p = 1.0, -1, 1.0
    scaled_V = logits_V / temperature
    weights_V = np.exp(scaled_V - scaled_V.max())
    order = np.argsort(-weights_V, kind="stable")[: top_k if top_k > 0 else None]
    shares = weights_V[order] / weights_V[order].sum()
    kept = order[: 1 + int((np.cumsum(shares)[:-1] < top_p).sum())]
    return float(np.log(weights_V[token] / weights_V[kept].sum())) if token in kept else -np.inf


def _report(
    samples: Sequence[Sampled],
    scorers: dict[str, Callable[[Sampled], np.ndarray]],
    threshold: float,
) -> int:
    sampler_T = np.concatenate([sampled.logprobs for sampled in samples])
    print(f"{'scored by':<22}{'tokens':>8}{'outside':>9}{'largest':>11}{'mean':>11}{'KL nats':>11}")
    agrees = True
    for name, score in scorers.items():
        found = Difference.between(sampler_T, np.concatenate([score(s) for s in samples]))
        print(
            f"{name:<22}{found.num_tokens:>8}{found.num_outside:>9}{found.largest:>11.2e}"
            f"{found.mean:>11.2e}{found.kl_nats:>11.2e}"
        )
        agrees = agrees and found.mean <= threshold and found.num_outside == 0
    rule = f"no token outside, and a mean difference of at most {threshold:g} (--threshold)"
    print(f"verdict: {'they agree' if agrees else 'THEY DIFFER'}; agreement is {rule}")
    return 0 if agrees else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="a model directory, served here unless --base-url is given")
    add("--base-url", help="a running backend")
    add("--base-model", help="the model's name there")
    add("--api-key", default=os.environ.get("TINKER_API_KEY"), help="default: $TINKER_API_KEY")
    add("--device", default="auto", help="of the backend that is started (default: auto)")
    add("--dtype", default="auto", help="of the backend that is started (default: auto)")
    add("--prompt", action="append", help="a user's message; may be repeated")
    add("--temperature", type=float, default=1.0)
    add("--top-k", type=int, default=-1, help="-1: all (default)")
    add("--top-p", type=float, default=1.0)
    add("--max-tokens", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--threshold", type=float, default=1e-3, help="nats; about 0.03 suits bfloat16 (default:"
        " %(default)s, for float32)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
