"""What the probes of one SDK version share: clients, a trained model, its checkpoints."""

import itertools
from functools import cached_property
from typing import Any

import tinker
from tinker import types
from tinker.lib.public_interfaces.rest_client import RestClient

from tests.compatibility.calls import settle

MODEL = "qwen3"
TOKENS = [11, 7, 205, 3, 42, 99, 180, 61, 17, 250, 33, 8]


def datum() -> types.Datum:
    """Predict each token from those before it."""
    inputs: Any = {"target_tokens": TOKENS[1:], "weights": [1.0] * (len(TOKENS) - 1)}
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


def prompt() -> types.ModelInput:
    return types.ModelInput.from_ints(TOKENS)


class Context:
    """Made once and shared, except what a probe uses up: that it asks for anew."""

    def __init__(self) -> None:
        self._names = (f"c{i}" for i in itertools.count())

    @cached_property
    def service(self) -> tinker.ServiceClient:
        return tinker.ServiceClient()

    @cached_property
    def rest(self) -> RestClient:
        return self.service.create_rest_client()

    @cached_property
    def training(self) -> tinker.TrainingClient:
        return self.new_training()

    @cached_property
    def sampling(self) -> tinker.SamplingClient:
        return settle(self.service.create_sampling_client(base_model=MODEL))

    @cached_property
    def state(self) -> str:
        return self.new_state()

    @cached_property
    def session_id(self) -> str:
        return self.training.model_id.split(":")[0]

    def new_name(self) -> str:
        return next(self._names)

    def new_training(self) -> tinker.TrainingClient:
        """A model that has taken one step."""
        client = settle(self.service.create_lora_training_client(MODEL, rank=4, seed=1))
        settle(client.forward_backward([datum()], "cross_entropy"))
        settle(client.optim_step(types.AdamParams(learning_rate=0.01)))
        return client

    def new_state(self) -> str:
        """The path of a training checkpoint."""
        return settle(self.training.save_state(self.new_name())).path

    def new_sampler_weights(self) -> str:
        """The path of a sampler checkpoint."""
        return settle(self.training.save_weights_for_sampler(self.new_name())).path

    def new_external_weights(self) -> str:
        """The path of an exported adapter."""
        return settle(self.training.save_weights_external(self.new_name())).path

    def checkpoints(self) -> dict[str, types.Checkpoint]:
        """Those of the trained model, by path."""
        found = settle(self.rest.list_checkpoints(self.training.model_id)).checkpoints
        return {checkpoint.tinker_path: checkpoint for checkpoint in found}


def loss_of(client: tinker.TrainingClient) -> float:
    """Of the datum, forward only: it tells the weights of two clients apart."""
    return settle(client.forward([datum()], "cross_entropy")).metrics["loss:sum"]
