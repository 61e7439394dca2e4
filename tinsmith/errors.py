"""The one exception whose message is meant for the user."""

import difflib
from collections.abc import Iterable


class TinsmithError(Exception):
    """Something that a user, a file or a network broke.

    The message is one paragraph that names the file, key or field, the rule and the value.
    Entry points print it without a traceback and exit with code 2.
    """


# Whose messages say what is wrong; of others the kind does.
SPEAKING = (OSError, ValueError, ImportError)


def in_words(error: Exception) -> str:
    """What a library's error says, with its kind where the text alone says too little."""
    kind, text = type(error).__name__, str(error)
    if not text:
        return kind
    return text if isinstance(error, SPEAKING) else f"{kind}: {text}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or all that there are."""
    listed = sorted(known)
    close = difflib.get_close_matches(word, listed, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(listed)}" if listed else ""
