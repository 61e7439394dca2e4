"""When a completion ends."""

from collections.abc import Callable, Sequence
from typing import Literal

from tinsmith.backend.sampling.request import SamplingRequest

# A token decodes to at least one byte, or joins its neighbours; this many further tokens are
# decoded with those that may hold the stop string, so that multi-byte characters stay whole.
CONTEXT_TOKENS = 8


def stop_reason(
    request: SamplingRequest, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> Literal["stop", "length"] | None:
    """Why the completion ends with its last token, or None if it goes on."""
    if tokens[-1] in request.stop_token_ids:
        return "stop"
    if request.stop_strings and _ends_a_string(request.stop_strings, tokens, decode):
        return "stop"
    return "length" if len(tokens) >= request.max_tokens else None


def _ends_a_string(
    strings: Sequence[str], tokens: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> bool:
    window = max(len(string.encode()) for string in strings) + CONTEXT_TOKENS
    text = decode(tokens[-window:])
    return any(string in text for string in strings)
