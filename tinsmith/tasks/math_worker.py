"""The program behind MathVerifier: a pair of texts in, a verdict out, one JSON a line."""

import json
import logging
import resource
import sys

MAX_MEMORY_BYTES = 2 * 1024**3


def main() -> None:
    """Answer until standard input ends."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, hard))
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write among the answers

    def expressions(text: str) -> list:
        # Without the library's time limits: whoever asks ends this process instead.
        return parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]

    for line in sys.stdin:
        expected, written = json.loads(line)
        try:
            found = expressions(written)
            is_equal = verify(expressions(expected), found, timeout_seconds=None)
            verdict = [bool(is_equal), bool(found)]
        except (Exception, MemoryError, RecursionError):  # a model wrote this: nothing is equal
            verdict = [False, False]
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
