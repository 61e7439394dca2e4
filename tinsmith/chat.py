"""A model's chat format: text becomes prompt tokens, once, and completion tokens become text."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from tinsmith.errors import TinsmithError, in_words

DTYPES = {"dtype", "torch_dtype"}
PROBE = "x"
# Stands for a reply in a rendered chat, so that what the template writes after one can be found.
MARK = "\ufdd0reply\ufdd0"


class Chat:
    """How one model is asked: its chat template, or plain text where its tokenizer has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    @classmethod
    def load(cls, model_dir: Path) -> "Chat":
        """The chat format of a model directory."""
        try:
            return cls(_tokenizer(model_dir))
        except Exception as error:  # of transformers, as many kinds as a config has keys
            raise TinsmithError(
                f"{model_dir} must hold a config.json and a tokenizer that transformers can load:"
                f" {in_words(error)}"
            ) from error

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer brings a chat template; without one, text is asked as it is."""
        return bool(self._tokenizer.chat_template)

    def prompt(self, text: str, system_prompt: str | None = None) -> tuple[int, ...]:
        """The tokens of a user's message, up to where the model's reply begins."""
        if not self._tokenizer.chat_template:
            whole = f"{system_prompt}\n\n{text}" if system_prompt else text
            return tuple(self._tokenizer.encode(whole))
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return self._render([*system, {"role": "user", "content": text}], is_prompt=True)

    def conversation(
        self, messages: list[dict[str, str]], **variables: bool | float | str
    ) -> tuple[int, ...]:
        """The tokens of messages with roles and contents, up to where the model's reply begins;
        `variables` are given to the template beside them."""
        try:
            return self._render(messages, is_prompt=True, **variables)
        except TypeError as error:  # a template computes with what it is given
            raise TinsmithError(
                f"the chat template of {self._tokenizer.name_or_path} cannot be used with"
                f" {variables}: {error}"
            ) from error

    def follow_up(self, text: str, after: int) -> tuple[int, ...]:
        """The tokens of a user's next message, up to where the model's next reply begins.

        They go behind the tokens of a reply as they are, the last of which is `after`: a reply that
        did not end itself is ended here.
        """
        if not self._tokenizer.chat_template:
            return self.encode(f"\n\n{text}")
        messages = [
            {"role": "user", "content": PROBE},
            {"role": "assistant", "content": MARK},
            {"role": "user", "content": text},
        ]
        _, found, tail = self._apply(messages, add_generation_prompt=True).partition(MARK)
        if not found or not tail:
            raise TinsmithError(
                f"the chat template of {self._tokenizer.name_or_path} must write a reply as it is"
                " and a next message behind it, which a debate is made of; take another model, or"
                " paradigm.kind: single_turn"
            )
        tokens = self.encode(tail)
        return tokens[1:] if tokens[0] == after else tokens

    def quote(self, text: str) -> str:
        """What a model wrote, fit to stand in a prompt: without the names of special tokens, which
        it may spell letter by letter and which a tokenizer would take for the tokens themselves."""
        added = self._tokenizer.added_tokens_decoder.values()
        names = [str(token) for token in added if token.special]
        while found := [name for name in names if name in text]:
            for name in found:
                text = text.replace(name, "")
        return text

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a bare text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def reply(self, text: str) -> tuple[int, ...]:
        """The tokens of a model's reply, its stop token included."""
        return (*self.encode(text), self.stop_token_ids[0])

    def decode(self, tokens: Sequence[int], *, with_special_tokens: bool = False) -> str:
        """The text of tokens, of a completion without its special ones."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=not with_special_tokens)

    def pieces(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """The text of each token alone, special tokens included; for people to read."""
        for token in set(tokens) - self._pieces.keys():
            self._pieces[token] = self._tokenizer.decode([token])
        return tuple(self._pieces[token] for token in tokens)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends a reply: the template's end of turn first, and the end-of-sequence token."""
        ends = (self._end_of_turn(), self._tokenizer.eos_token_id)
        found = tuple(dict.fromkeys(end for end in ends if end is not None))
        if not found:
            raise TinsmithError(
                f"the tokenizer of {self._tokenizer.name_or_path} must have an end-of-sequence"
                " token or a chat template with an end of turn, got neither"
            )
        return found

    def _end_of_turn(self) -> int | None:
        """The last special token that the template writes after an assistant's message."""
        if not self._tokenizer.chat_template:
            return None
        question = {"role": "user", "content": PROBE}
        prompt = self._render([question], is_prompt=True)
        whole = self._render([question, {"role": "assistant", "content": PROBE}], is_prompt=False)
        special = set(self._tokenizer.all_special_ids)
        return next((token for token in reversed(whole[len(prompt) :]) if token in special), None)

    def _render(
        self, messages: list[dict[str, str]], *, is_prompt: bool, **variables: Any
    ) -> tuple[int, ...]:
        options = {"tokenize": True, "add_generation_prompt": is_prompt, "return_dict": False}
        return tuple(self._apply(messages, **options, **variables))

    def _apply(self, messages: list[dict[str, str]], **options: Any) -> Any:
        """The chat by the model's template: text, or tokens where `tokenize` is true."""
        try:
            return self._tokenizer.apply_chat_template(messages, **{"tokenize": False} | options)
        except jinja2.TemplateError as error:
            raise TinsmithError(
                f"the chat template of {self._tokenizer.name_or_path} refuses the messages"
                f" {[message['role'] for message in messages]}: {error}"
            ) from error


def _tokenizer(model_dir: Path) -> Any:
    """As transformers chooses it by the model's config, which imports PyTorch if it has a dtype: a
    second for nothing."""
    from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig

    told, _ = PreTrainedConfig.get_config_dict(model_dir, local_files_only=True)
    settings = {name: value for name, value in told.items() if name not in DTYPES}
    config = None
    if told.get("model_type") in CONFIG_MAPPING:
        kind: Any = CONFIG_MAPPING[told["model_type"]]
        with suppress(Exception):  # then it is for transformers to say what to do
            config = kind.from_dict(settings | {"name_or_path": str(model_dir)})
    return AutoTokenizer.from_pretrained(model_dir, local_files_only=True, config=config)
