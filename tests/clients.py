"""Short ways to say what the contract tests ask of the real SDK."""

import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tinker
from tinker import types

Params = types.SamplingParams


def make_datum(tokens: Sequence[int], weights: Sequence[float] | None = None) -> types.Datum:
    """Predict each token from those before it."""
    inputs: dict[str, object] = {
        "target_tokens": list(tokens[1:]),
        "weights": [1.0] * (len(tokens) - 1) if weights is None else list(weights),
    }
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(tokens[:-1])),
        loss_fn_inputs=inputs,  # pyright: ignore[reportArgumentType] lists become tensors
    )


def random_tokens(seed: int, size: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 400, size).tolist()


def train(client: tinker.TrainingClient, steps: int, *, seed: int = 0, rate: float = 1e-2) -> None:
    """A few optimizer steps on random data, after which B is not zero."""
    for step in range(steps):
        data = [make_datum(random_tokens(100 * seed + 10 * step + i, 8 + 3 * i)) for i in range(3)]
        client.forward_backward(data, "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=rate)).result()


def trained_client(
    service: tinker.ServiceClient, model: str, *, rank: int = 4, seed: int = 1, steps: int = 3
) -> tinker.TrainingClient:
    client = service.create_lora_training_client(model, rank=rank, seed=seed).result()
    train(client, steps, seed=seed)
    return client


def forward(client: tinker.TrainingClient, tokens: Sequence[int]) -> list[float]:
    """The trainer's log-probabilities of tokens[1:]."""
    output = client.forward([make_datum(tokens)], "cross_entropy").result()
    return output.loss_fn_outputs[0]["logprobs"].tolist()


def prompt_logprobs(client: tinker.SamplingClient, tokens: Sequence[int]) -> list[float]:
    """The sampler's log-probabilities of tokens[1:]."""
    found = client.compute_logprobs(types.ModelInput.from_ints(list(tokens))).result()
    assert found[0] is None
    return [value for value in found[1:] if value is not None]


def sample(
    client: tinker.SamplingClient, prompt: Sequence[int], num_samples: int = 1, **params: object
) -> list[types.SampledSequence]:
    """Completions of a prompt."""
    answer = client.sample(
        types.ModelInput.from_ints(list(prompt)),
        num_samples=num_samples,
        sampling_params=Params(**params),  # pyright: ignore[reportArgumentType]
    )
    return list(answer.result().sequences)


def download(path: str, directory: Path, service: tinker.ServiceClient | None = None) -> Path:
    """Fetch an external checkpoint as users do: by its URLs, with plain urllib; from the server
    of `service`, or that of the environment."""
    rest = tinker.RestClient() if service is None else service.create_rest_client()
    urls = rest.get_external_weights_urls(path).result().urls
    for name, url in urls.items():
        with urllib.request.urlopen(url) as response:
            (directory / name).write_bytes(response.read())
    return directory
