"""Speakers who say what a script says, where a debate expects models: fakes at the SDK's seam."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import tinker

from tinsmith.chat import Chat
from tinsmith.frozen import FrozenModels
from tinsmith.rollouts import Sampler
from tinsmith.tiny.tokenizer import make_tokenizer

CHAT = Chat(make_tokenizer())
END = CHAT.stop_token_ids[0]

Say = Callable[[str, int], tuple[int, ...]]


class ScriptedClient:
    """Says what a function of the prompt's text and the sample's number says."""

    def __init__(self, say: Say, events: list[tuple[str, Any]] | None = None) -> None:
        self._say = say
        self.events = [] if events is None else events

    def sample(
        self,
        prompt: tinker.ModelInput,
        num_samples: int,
        sampling_params: tinker.SamplingParams,
    ) -> "Answer":
        self.events.append(("asked", (prompt.to_ints(), num_samples, sampling_params.seed)))
        text = CHAT.decode(prompt.to_ints())
        return Answer([self._say(text, i) for i in range(num_samples)], self.events)


class Answer:
    def __init__(self, spoken: list[tuple[int, ...]], events: list[tuple[str, Any]]) -> None:
        self._spoken = spoken
        self._events = events

    def result(self) -> tinker.SampleResponse:
        self._events.append(("awaited", None))
        return tinker.SampleResponse([self._sequence(tokens) for tokens in self._spoken])

    def _sequence(self, tokens: tuple[int, ...]) -> tinker.SampledSequence:
        return tinker.SampledSequence(
            stop_reason="stop" if tokens[-1] == END else "length",
            sequence_id="",
            tokens_np=np.array(tokens, dtype=np.int32),
            logprobs_np=np.full(len(tokens), -0.5, dtype=np.float32),
        )


class Service:
    """Knows one model by its path; None is the base."""

    def __init__(self, clients: dict[str | None, Any]) -> None:
        self._clients = clients

    def create_sampling_client(
        self, base_model: str | None = None, model_path: str | None = None
    ) -> Any:
        return Ready(self._clients[model_path])


class Ready:
    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


def saying(text: str) -> Say:
    return lambda prompt, sample: CHAT.reply(text)


def frozen_models(clients: dict[str | None, Any]) -> FrozenModels:
    return FrozenModels(cast(tinker.ServiceClient, Service(clients)), "base", CHAT)


def sampler_of(client: Any) -> Sampler:
    return Sampler(cast(tinker.SamplingClient, client), CHAT, max_tokens=8)
