"""The two forms of answers in OpenAI's API: those of chats, and those of bare completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tinsmith.backend.sampling.request import EMPTY, TopLogprobs
from tinsmith.backend.sampling.text import UNFINISHED


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens, the log-probability of each (None: it has none), the likeliest in its place, where
    its text begins, and where that of the last one ends."""

    tokens: Sequence[int]
    logprobs: Sequence[float | None]
    top: TopLogprobs | None
    offsets: Sequence[int]
    end: int

    def followed_by(self, other: "Scored") -> "Scored":
        """These tokens with others behind them."""
        top = self.top
        if top is not None and other.top is not None:
            top = TopLogprobs(
                np.concatenate([top.token_ids, other.top.token_ids]),
                np.concatenate([top.logprobs, other.top.logprobs]),
            )
        return Scored(
            [*self.tokens, *other.tokens],
            [*self.logprobs, *other.logprobs],
            top,
            [*self.offsets, *(self.end + offset for offset in other.offsets)],
            self.end + other.end,
        )


class Form(Protocol):
    """How one of the two kinds of answers is written."""

    prefix: str
    kind: str
    chunk_kind: str

    def whole(self, text: str) -> dict[str, Any]: ...
    def piece(self, text: str, *, is_first: bool) -> dict[str, Any]: ...
    def scores(self, tokenizer: Any, scored: Scored) -> dict[str, Any]: ...


class ChatForm:
    """Answers of /v1/chat/completions."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def piece(self, text: str, *, is_first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if is_first else {}
        return {"delta": role | ({"content": text} if text or is_first else {})}

    def scores(self, tokenizer: Any, scored: Scored) -> dict[str, Any]:
        entries = []
        for i, (token, logprob) in enumerate(zip(scored.tokens, scored.logprobs, strict=True)):
            likeliest = [_entry(tokenizer, *pair) for pair in _likeliest(scored.top, i)]
            entries.append(_entry(tokenizer, token, logprob) | {"top_logprobs": likeliest})
        return {"content": entries, "refusal": None}


def _entry(tokenizer: Any, token: int, logprob: float | None) -> dict[str, Any]:
    text = tokenizer.decode([token])
    code = None if UNFINISHED in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": code}


class CompletionForm:
    """Answers of /v1/completions."""

    prefix = "cmpl"
    kind = chunk_kind = "text_completion"

    def whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def piece(self, text: str, *, is_first: bool) -> dict[str, Any]:
        return {"text": text}

    def scores(self, tokenizer: Any, scored: Scored) -> dict[str, Any]:
        top: list[dict[str, float] | None] | None = None
        if scored.top is not None:
            top = []
            for i, (token, logprob) in enumerate(zip(scored.tokens, scored.logprobs, strict=True)):
                if logprob is None:
                    top.append(None)
                    continue
                texts: dict[str, float] = {}  # of tokens with the same text the likeliest
                for other, value in [*_likeliest(scored.top, i), (token, logprob)]:
                    texts.setdefault(tokenizer.decode([other]), value)
                top.append(texts)
        return {
            "tokens": [tokenizer.decode([token]) for token in scored.tokens],
            "token_logprobs": list(scored.logprobs),
            "top_logprobs": top,
            "text_offset": list(scored.offsets),
        }


def _likeliest(top: TopLogprobs | None, row: int) -> list[tuple[int, float]]:
    if top is None:
        return []
    pairs = zip(top.token_ids[row], top.logprobs[row], strict=True)
    return [(int(token), float(value)) for token, value in pairs if value != EMPTY]
