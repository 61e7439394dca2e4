"""What a sampler returns, written as OpenAI's API has it: whole, or in chunks as it grows."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinsmith.backend.sampling.request import (
    Completion,
    Growth,
    PromptScores,
    SamplingRequest,
    SamplingResult,
    TopLogprobs,
)
from tinsmith.backend.sampling.text import Text
from tinsmith.backend.wire.openai_forms import Form, Scored
from tinsmith.backend.wire.openai_requests import ChatRequest, CompletionRequest


@dataclass(slots=True)
class _Choice:
    """One completion of one prompt, as far as it was written."""

    index: int
    prompt: Sequence[int]
    echo: str
    text: Text
    num_tokens: int = 0
    has_begun: bool = False


class Writer:
    """Writes the answer to one request, which asks for `requests` of the sampler.

    `echoes` are texts that stand in front of the completions of each prompt.
    """

    def __init__(
        self,
        form: Form,
        body: ChatRequest | CompletionRequest,
        requests: Sequence[SamplingRequest],
        tokenizer: Any,
        echoes: Sequence[str] | None = None,
    ) -> None:
        self._form = form
        self._body = body
        self._tokenizer = tokenizer
        self._head = {
            "id": f"{form.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        self._num_prompt = sum(len(request.prompt) for request in requests)
        self._choices = [
            _Choice(
                index=i * body.n + sample,
                prompt=request.prompt,
                echo="" if echoes is None else echoes[i],
                text=Text(partial(_decode, tokenizer), request.prompt, request.stop_strings),
            )
            for i, request in enumerate(requests)
            for sample in range(body.n)
        ]

    def whole(self, results: Sequence[SamplingResult]) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        completions = [
            (completion, result.prompt) for result in results for completion in result.sequences
        ]
        choices = [
            self._whole(choice, completion, prompt)
            for choice, (completion, prompt) in zip(self._choices, completions, strict=True)
        ]
        return self._answer(self._form.kind, choices) | {"usage": self._usage()}

    def chunks(self, i: int, sample: int, event: Growth | Completion) -> Iterator[dict[str, Any]]:
        """A chunk for what a completion of prompt `i` grew by, if there is anything to be seen."""
        choice = self._choices[i * self._body.n + sample]
        # A sampler that cannot tell of growth tells of everything in the end.
        new = event if isinstance(event, Growth) else _rest(event, choice.num_tokens)
        text, scored = self._read(choice, new)
        reason = None
        if isinstance(event, Completion):
            text, reason = text + choice.text.end(), self._reason(event)
        is_first, is_told = (
            not choice.has_begun,
            self._body.wants_logprobs or self._body.return_token_ids,
        )
        if is_first and choice.echo:
            text = choice.echo + text
        if not (text or reason or (scored.tokens and is_told)):
            return
        choice.has_begun = True
        piece = self._form.piece(text, is_first=is_first)
        made = self._made(choice, piece, scored, scored.tokens, reason, with_prompt=is_first)
        chunk = self._answer(self._form.chunk_kind, [made])
        yield chunk | {"usage": None} if self._body.includes_usage else chunk

    def last_chunks(self) -> Iterator[dict[str, Any]]:
        """The chunk with the usage, for who asked for it."""
        if self._body.includes_usage:
            yield self._answer(self._form.chunk_kind, []) | {"usage": self._usage()}

    def _whole(
        self, choice: _Choice, completion: Completion, prompt: PromptScores
    ) -> dict[str, Any]:
        text, scored = self._read(choice, completion)
        text = choice.echo + text + choice.text.end()
        tokens = scored.tokens
        if prompt.logprobs is not None:
            scored = self._read_prompt(choice.prompt, prompt).followed_by(scored)
        piece, reason = self._form.whole(text), self._reason(completion)
        return self._made(choice, piece, scored, tokens, reason, with_prompt=True)

    def _read(self, choice: _Choice, new: Growth | Completion) -> tuple[str, Scored]:
        """The text of new tokens, as far as it can be told yet."""
        if self._body.max_tokens == 0:  # one token was drawn to score the prompt, and is not told
            return "", Scored((), (), None, (), 0)
        pieces, offsets = [], []
        for token in new.tokens:
            offsets.append(choice.text.num_decoded)
            pieces.append(choice.text.add(token))
        choice.num_tokens += len(new.tokens)
        logprobs = [float(value) for value in new.logprobs]
        end = choice.text.num_decoded
        return "".join(pieces), Scored(list(new.tokens), logprobs, new.top, offsets, end)

    def _read_prompt(self, prompt: Sequence[int], scores: PromptScores) -> Scored:
        text, offsets = Text(partial(_decode, self._tokenizer)), []
        for token in prompt:
            offsets.append(text.num_decoded)
            text.add(token)
        text.end()
        assert scores.logprobs is not None
        logprobs = [None if np.isnan(value) else float(value) for value in scores.logprobs]
        return Scored(list(prompt), logprobs, scores.top, offsets, text.num_decoded)

    def _reason(self, completion: Completion) -> str:
        return "length" if self._body.max_tokens == 0 else completion.stop_reason

    def _made(
        self,
        choice: _Choice,
        piece: dict[str, Any],
        scored: Scored,
        tokens: Sequence[int],
        reason: str | None,
        *,
        with_prompt: bool,
    ) -> dict[str, Any]:
        scores = self._form.scores(self._tokenizer, scored) if self._body.wants_logprobs else None
        made = {"index": choice.index, **piece, "logprobs": scores, "finish_reason": reason}
        if self._body.return_token_ids:
            made["token_ids"] = list(tokens)
            if with_prompt:
                made["prompt_token_ids"] = list(choice.prompt)
        return made

    def _answer(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices}

    def _usage(self) -> dict[str, int]:
        num_tokens = sum(choice.num_tokens for choice in self._choices)
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": num_tokens,
            "total_tokens": self._num_prompt + num_tokens,
        }


def _rest(completion: Completion, start: int) -> Growth:
    top = completion.top
    if top is not None:
        top = TopLogprobs(top.token_ids[start:], top.logprobs[start:])
    return Growth(completion.tokens[start:], completion.logprobs[start:], top)


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
