"""What the cookbook does with weights when training is over."""

from pathlib import Path

import numpy as np
import tinker

from tests.clients import prompt_logprobs, random_tokens, trained_client
from tests.cookbook.hub import LLAMA_MODEL
from tests.cookbook.recipes import PYTHON, Recipes, run_program

DOWNLOAD_AND_MERGE = """
import sys
from tinker_cookbook import weights
path, base_model, folder = sys.argv[1:]
weights.download(tinker_path=path, output_dir=f"{folder}/adapter")
weights.build_hf_model(base_model=base_model, adapter_path=f"{folder}/adapter",
                       output_path=f"{folder}/merged", dtype="float32")
"""


def reference_logprobs(directory: Path, tokens: list[int]) -> np.ndarray:
    """Log-probabilities of tokens[1:] by plain transformers in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    with torch.no_grad():
        logits_TV = model(torch.tensor([tokens])).logits[0, :-1]
    chosen = logits_TV.log_softmax(-1).gather(1, torch.tensor(tokens[1:]).unsqueeze(1))
    return chosen.squeeze(1).numpy()


def test_a_state_that_the_cookbook_downloads_and_merges_scores_as_the_sampler_did(
    recipes: Recipes, service: tinker.ServiceClient
):
    """The way of a training path: loaded again, exported encrypted, decrypted, merged."""
    client = trained_client(service, LLAMA_MODEL)
    path = client.save_state("final").result().path
    tokens = random_tokens(7, 40)
    sampled = prompt_logprobs(client.save_weights_and_get_sampling_client().result(), tokens)

    folder = recipes.folder / "downloaded"
    command = [str(PYTHON), "-c", DOWNLOAD_AND_MERGE, path, LLAMA_MODEL, str(folder)]
    run_program(command, recipes.folder, recipes.environment)

    np.testing.assert_allclose(reference_logprobs(folder / "merged", tokens), sampled, atol=1e-4)
    untrained = reference_logprobs(recipes.folder / LLAMA_MODEL, tokens)
    assert np.abs(untrained - sampled).max() > 0.1
