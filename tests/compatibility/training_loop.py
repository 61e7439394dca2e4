"""`python -m tests.compatibility.training_loop`: the training and sampling loop, for any SDK.

It trains, saves, loads and samples with the SDK of the interpreter that runs it, on the server that
TINKER_BASE_URL names, and prints what it got as one line of JSON.
"""

import json
from typing import Any

import tinker
from tinker import types

from tests.compatibility.calls import settle

MODEL = "qwen3"
TOKENS = [11, 7, 205, 3, 42, 99, 180, 61, 17, 250, 33, 8]


def run_loop() -> dict[str, Any]:
    """Log-probabilities and metrics of every operation, by name."""
    service = tinker.ServiceClient()
    client = settle(service.create_lora_training_client(MODEL, rank=4, seed=1))
    found: dict[str, Any] = {"steps": [_step(client, k) for k in range(3)]}
    path = settle(client.save_state("middle")).path
    found["after the state"] = _step(client, 3)

    resumed = settle(service.create_training_client_from_state_with_optimizer(path))
    found["resumed"] = _step(resumed, 3)
    fresh = settle(service.create_training_client_from_state(path))
    found["fresh"] = _step(fresh, 3)
    settle(fresh.load_state(path))
    found["loaded"] = _step(fresh, 3)
    settle(fresh.load_state_with_optimizer(path))
    found["loaded with optimizer"] = _step(fresh, 3)

    prompt = types.ModelInput.from_ints(TOKENS)
    named = settle(client.save_weights_for_sampler("final")).path
    samplers = {
        "snapshot": settle(client.save_weights_and_get_sampling_client()),
        "named": settle(service.create_sampling_client(model_path=named)),
        "base": settle(service.create_sampling_client(base_model=MODEL)),
    }
    params = types.SamplingParams(max_tokens=6, temperature=0.7, seed=3, stop=[])
    for name, sampler in samplers.items():
        answer = settle(sampler.sample(prompt, num_samples=2, sampling_params=params))
        found[name] = {
            "tokens": [list(sequence.tokens) for sequence in answer.sequences],
            "logprobs": [list(sequence.logprobs) for sequence in answer.sequences],
            "prompt_logprobs": settle(sampler.compute_logprobs(prompt)),
        }
    return found


def _step(client: Any, k: int) -> dict[str, Any]:
    """One forward, one forward_backward of each kind of datum, one optimizer step."""
    supervised = [_datum(k, weights=[1.0, 0.0] * 5 + [0.5]), _datum(k + 1, weights=[1.0] * 11)]
    policy = [_datum(k, logprobs=[-5.5] * 11, advantages=[0.25 * (i - 5) for i in range(11)])]
    forward = settle(client.forward(supervised, "cross_entropy"))
    outputs = [
        settle(client.forward_backward(supervised, "cross_entropy")),
        settle(client.forward_backward(policy, "importance_sampling")),
        settle(client.forward_backward(policy, "ppo", {"clip_low_threshold": 0.5})),
    ]
    stepped = settle(client.optim_step(types.AdamParams(learning_rate=0.01, grad_clip_norm=1.0)))
    return {
        "logprobs": [
            output["logprobs"].to_numpy().tolist()
            for result in (forward, *outputs)
            for output in result.loss_fn_outputs
        ],
        "metrics": [dict(sorted(result.metrics.items())) for result in (forward, *outputs)],
        "grad_norm": stepped.metrics["grad_norm"],
    }


def _datum(shift: int, **inputs: list[float]) -> types.Datum:
    tokens = TOKENS[shift:] + TOKENS[:shift]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], **inputs},  # pyright: ignore[reportArgumentType]
    )


if __name__ == "__main__":
    print(json.dumps(run_loop()))
