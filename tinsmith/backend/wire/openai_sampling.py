"""What the sampler is asked for a request of OpenAI's API."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.request import SamplingRequest
from tinsmith.backend.wire.openai_requests import ChatRequest, CompletionRequest, SamplingBody
from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the server says where a request does not: `next_seed` gives each prompt another one."""

    min_p: float
    next_seed: Callable[[], int]


def chat_sampling(
    body: ChatRequest, base: BaseModel, chat: Chat, defaults: Defaults
) -> SamplingRequest:
    """What the sampler is asked for a chat: the model's next turn, by its chat template."""
    if not base.tokenizer.chat_template:
        raise TinsmithError(
            f"messages: the tokenizer of {base.name} has no chat template; use /v1/completions"
        )
    messages = [message.plain() for message in body.messages]
    prompt = chat.conversation(messages, **body.chat_template_kwargs)
    max_tokens = body.max_completion_tokens or body.max_tokens
    if max_tokens is None:
        max_tokens = max(1, base.context_length - len(prompt) + 1)
    stop = frozenset({*base.eos_token_ids, *chat.stop_token_ids})
    top = body.top_logprobs if body.logprobs else 0
    return _sampling(body, base, prompt, max_tokens, stop, defaults, topk_sample_logprobs=top)


def completion_samplings(
    body: CompletionRequest, base: BaseModel, defaults: Defaults
) -> list[SamplingRequest]:
    """What the sampler is asked for each prompt, as it is, without a template."""
    top = body.logprobs or 0
    prompts = (
        tuple(base.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        for prompt in body.prompt
    )
    return [
        _sampling(
            body,
            base,
            prompt,
            16 if body.max_tokens is None else max(1, body.max_tokens),
            frozenset(base.eos_token_ids),
            defaults,
            topk_sample_logprobs=top,
            wants_prompt_logprobs=body.wants_prompt_logprobs,
            topk_prompt_logprobs=top if body.wants_prompt_logprobs else 0,
        )
        for prompt in prompts
    ]


def _sampling(
    body: SamplingBody,
    base: BaseModel,
    prompt: tuple[int, ...],
    max_tokens: int,
    stop_token_ids: frozenset[int],
    defaults: Defaults,
    **scores: Any,
) -> SamplingRequest:
    request = SamplingRequest(
        prompt=prompt,
        num_samples=body.n,
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_k=body.top_k or -1,  # 0 is another name for no limit
        top_p=body.top_p,
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        seed=defaults.next_seed() if body.seed is None else body.seed,
        stop_token_ids=stop_token_ids,
        stop_strings=tuple(body.stop),
        **scores,
    )
    request.check(base.vocabulary_size, base.context_length)
    return request
