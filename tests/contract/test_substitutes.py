"""A loss without a published formula: another one stands in where the server was told so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.clients import random_tokens, sample
from tinsmith.serving import Endpoint, local_server


def policy_datum(tokens: list[int], prompt_size: int, logprobs: list[float]) -> types.Datum:
    """A rollout with an advantage of 1 on its completion."""
    prompt = [0.0] * (prompt_size - 1)
    inputs: dict[str, object] = {
        "target_tokens": tokens[1:],
        "logprobs": prompt + logprobs,
        "advantages": prompt + [1.0] * len(logprobs),
    }
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs=inputs,  # pyright: ignore[reportArgumentType] lists become tensors
    )


@pytest.fixture(scope="module")
def substituting(
    qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Endpoint, Path]]:
    folder = tmp_path_factory.mktemp("substituting")
    options = [f"--store={folder}", "--threads=1", "--substitute=stable_reinforce=cispo"]
    with local_server({"qwen3": str(qwen3_dir)}, options, log=folder / "log") as endpoint:
        yield endpoint, folder / "log"


def test_a_substitute_computes_in_the_place_of_stable_reinforce_and_says_so(
    substituting: tuple[Endpoint, Path],
):
    endpoint, log = substituting
    data = [policy_datum(random_tokens(1, 20), 5, [-3.0] * 15)]
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        client = service.create_lora_training_client("qwen3", rank=4, seed=0).result()
        asked = client.forward_backward(data, "cispo").result().metrics
        replaced = client.forward_backward(data, "stable_reinforce").result().metrics
        assert replaced == asked | {"substituted_loss:max": 1.0}
        assert "asks for the loss stable_reinforce and gets cispo" in log.read_text()
        with pytest.raises(
            tinker.RequestFailedError,
            match=r"cispo, in place of stable_reinforce, takes clip_low_threshold and .* got kl_co",
        ):
            client.forward_backward(data, "stable_reinforce", {"kl_coeff": 0.1}).result()


def test_a_program_for_stable_reinforce_samples_and_trains_on_a_substitute(
    substituting: tuple[Endpoint, Path],
):
    """As Tinker documents it: sample with record_stability_info, train with provenance."""
    endpoint, _ = substituting
    prompt = random_tokens(0, 6)
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        client = service.create_lora_training_client("qwen3", rank=4, seed=0).result()
        sampler = client.save_weights_and_get_sampling_client(record_stability_info=True).result()
        [sequence] = sample(sampler, prompt, max_tokens=5, stop=[])
        assert sequence.logprobs is not None
        spans = [
            types.PromptProvenanceSpan(sequence_id=sequence.sequence_id, length=6),
            types.SampledProvenanceSpan(sequence_id=sequence.sequence_id, length=4),
        ]
        datum = policy_datum([*prompt, *sequence.tokens], 6, sequence.logprobs)
        datum = datum.with_provenance(
            model_input=spans,
            loss_fn_inputs=[
                types.PromptProvenanceSpan(sequence_id=sequence.sequence_id, offset=1, length=5),
                types.SampledProvenanceSpan(sequence_id=sequence.sequence_id, length=5),
            ],
        )
        metrics = client.forward_backward([datum], "stable_reinforce").result().metrics
        # On policy the ratios are 1: what is left of cispo is minus the sum of log-probabilities.
        assert metrics["loss:sum"] == pytest.approx(-sum(sequence.logprobs), rel=1e-4)
        assert metrics["substituted_loss:max"] == 1
