"""The text of a completion, as its tokens come."""

from collections.abc import Callable, Sequence

# A character may need several tokens, and some tokenizers write a token by what stands before it:
# these many of the prompt are decoded with the first ones of a completion.
CONTEXT_TOKENS = 4
UNFINISHED = "\ufffd"  # what a part of a character decodes to


class Text:
    """One completion's text, up to its first stop string and without special tokens.

    What is given out is never half a character, nor what may be the beginning of a stop string.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        before: Sequence[int] = (),
        stops: Sequence[str] = (),
    ) -> None:
        """`decode` leaves special tokens out; `before` are the tokens of the prompt."""
        self._decode = decode
        self._stops = stops
        self._tokens = list(before[-CONTEXT_TOKENS:])  # those that the next text depends on
        self._num_known = len(self._tokens)
        self._held = ""  # decoded, but it may begin a stop string
        self._is_cut = False
        self.num_decoded = 0

    def add(self, token: int) -> str:
        """What the text grows by with one more token."""
        self._tokens.append(token)
        new = self._decoded(is_last=False)
        return self._give_out(new, is_last=False)

    def end(self) -> str:
        """What was held back, once there are no more tokens."""
        return self._give_out(self._decoded(is_last=True), is_last=True)

    def _decoded(self, *, is_last: bool) -> str:
        known, whole = self._decode(self._tokens[: self._num_known]), self._decode(self._tokens)
        if not is_last and (len(whole) <= len(known) or whole.endswith(UNFINISHED)):
            return ""
        self._tokens = self._tokens[self._num_known :]
        self._num_known = len(self._tokens)
        new = whole[len(known) :]
        self.num_decoded += len(new)
        return new

    def _give_out(self, new: str, *, is_last: bool) -> str:
        if self._is_cut:
            return ""
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._is_cut = True
            return text[: min(found)]
        held = 0 if is_last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text with which a stop string begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
