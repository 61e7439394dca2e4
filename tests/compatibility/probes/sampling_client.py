"""SamplingClient."""

import tinker
from tinker import types
from tinker.lib.api_future_impl import QueueState

from tests.compatibility.calls import Call, settle
from tests.compatibility.context import MODEL, TOKENS, Context, prompt


def compute_logprobs(c: Context, call: Call) -> None:
    logprobs = call(c.sampling, prompt())
    assert logprobs[0] is None
    assert len(logprobs) == len(TOKENS)
    assert max(logprobs[1:]) < 0


def create(c: Context, call: Call) -> None:
    client = call(tinker.SamplingClient, c.service.holder, base_model=MODEL)
    assert len(settle(client.compute_logprobs(prompt()))) == len(TOKENS)


def from_sampler_handle(c: Context, call: Call) -> None:
    client = call(tinker.SamplingClient, c.sampling.get_sampler_handle())
    expected = settle(c.sampling.compute_logprobs(prompt()))
    assert settle(client.compute_logprobs(prompt())) == expected


def get_base_model(c: Context, call: Call) -> None:
    assert call(c.sampling) == MODEL


def get_sampler_handle(c: Context, call: Call) -> None:
    assert isinstance(call(c.sampling), str)


def get_telemetry(c: Context, call: Call) -> None:
    assert call(c.sampling) is not None


def get_tokenizer(c: Context, call: Call) -> None:
    assert call(c.sampling).decode(TOKENS)


def on_queue_state_change(c: Context, call: Call) -> None:
    call(c.sampling, QueueState.ACTIVE, None)


def sample(c: Context, call: Call) -> None:
    params = types.SamplingParams(max_tokens=5, seed=1, temperature=0.5, top_p=0.9, stop=[])
    answer = call(c.sampling, prompt(), 3, params, include_prompt_logprobs=True)
    assert [len(sequence.tokens) for sequence in answer.sequences] == [5, 5, 5]
    assert all(max(sequence.logprobs) <= 0 for sequence in answer.sequences)
    assert len(answer.prompt_logprobs) == len(TOKENS)
