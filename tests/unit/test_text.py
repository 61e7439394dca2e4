"""The text of a completion, piece by piece."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import VOCABULARY_SIZE
from tinsmith.backend.sampling.text import Text

TOKENS = st.lists(st.integers(0, VOCABULARY_SIZE - 1), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(qwen3_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(qwen3_dir)


def pieces_of(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    text = Text(lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True), (), stops)
    return [*(text.add(token) for token in tokens), text.end()]


def test_the_pieces_together_are_the_text_of_all_tokens(tokenizer: Any):
    @settings(max_examples=200, deadline=None, database=None)
    @given(TOKENS)
    def hold(tokens: list[int]) -> None:
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        assert "".join(pieces_of(tokenizer, tokens)) == whole

    hold()


def test_no_piece_reaches_into_a_stop_string(tokenizer: Any):
    @settings(max_examples=200, deadline=None, database=None)
    @given(TOKENS, st.lists(st.text("0123456789 +=", min_size=1, max_size=4), max_size=3))
    def hold(tokens: list[int], stops: list[str]) -> None:
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
        assert "".join(pieces_of(tokenizer, tokens, stops)) == whole[: min(ends, default=None)]

    hold()


def test_a_character_of_several_tokens_is_given_out_whole(tokenizer: Any):
    tokens = tokenizer.encode("a \U0001f680 b", add_special_tokens=False)
    pieces = pieces_of(tokenizer, tokens)
    assert len(tokens) > len("a \U0001f680 b"), "the rocket needs several tokens"
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == "a \U0001f680 b"


def test_what_is_certain_is_given_out_at_once(tokenizer: Any):
    tokens = tokenizer.encode("123", add_special_tokens=False)
    text = Text(lambda ids: tokenizer.decode(list(ids)), (), ["3"])
    assert "".join(text.add(token) for token in tokens[:-1]) == tokenizer.decode(tokens[:-1])
