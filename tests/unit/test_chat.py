"""The chat format: tokens of prompts and replies, and what ends a reply."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.models import changed_model
from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError
from tinsmith.tiny.tokenizer import make_tokenizer

WORDS = ("<s>", "</s>", "<end>", "user", "model", "x", "two", "plus", "four", "be", "brief")


def word_tokenizer(**settings: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words whose end of turn is not its end of sequence."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


TURNS = (
    "<s> {% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}model {% endif %}"
)


def test_a_prompt_is_what_the_models_template_makes_of_the_messages():
    tokenizer = make_tokenizer()
    prompt = Chat(tokenizer).prompt("2+2", system_prompt="Be brief.")
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2<|im_end|>\n"
    assert tokenizer.decode(list(prompt)) == f"{text}<|im_start|>assistant\n"


def test_a_reply_ends_with_the_token_that_ends_a_turn():
    tokenizer = make_tokenizer()
    chat = Chat(tokenizer)
    assert chat.stop_token_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert tokenizer.decode(list(chat.reply("4"))) == "4<|im_end|>"


def test_the_templates_end_of_turn_and_the_end_of_sequence_both_stop():
    chat = Chat(word_tokenizer(eos_token="</s>", chat_template=TURNS, pad_token="<end>"))
    assert chat.stop_token_ids == (WORDS.index("<end>"), WORDS.index("</s>"))
    assert chat.reply("four") == (WORDS.index("four"), WORDS.index("<end>"))


def test_a_tokenizer_without_template_is_asked_in_plain_text():
    chat = Chat(word_tokenizer(eos_token="</s>"))
    words = [WORDS[token] for token in chat.prompt("two plus two", "be brief")]
    assert words == ["be", "brief", "two", "plus", "two"]
    assert chat.stop_token_ids == (WORDS.index("</s>"),)


def test_decoding_leaves_special_tokens_out_and_pieces_keep_them():
    chat = Chat(make_tokenizer())
    tokens = chat.reply("85")
    assert chat.decode(tokens) == "85"
    assert chat.pieces(tokens) == ("8", "5", "<|im_end|>")


def test_a_tokenizer_without_any_end_is_refused():
    with pytest.raises(TinsmithError, match="end-of-sequence"):
        _ = Chat(word_tokenizer()).stop_token_ids


def test_a_template_that_refuses_a_role_is_an_error_in_plain_words():
    chat = Chat(word_tokenizer(eos_token="</s>", chat_template=TURNS))
    with pytest.raises(TinsmithError, match=r"refuses the messages.*system.*no system"):
        chat.prompt("two", "be brief")


def test_a_chat_goes_on_behind_a_reply_as_the_template_writes_it():
    tokenizer = make_tokenizer()
    chat = Chat(tokenizer)
    words = ("1+1", "2", "Are you sure? 3")
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), words, strict=True)
    ]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    begun = (*chat.prompt(words[0]), *chat.reply(words[1]))
    assert (*begun, *chat.follow_up(words[2], begun[-1])) == tuple(whole)
    cut_off = begun[:-1]
    assert (*cut_off, *chat.follow_up(words[2], cut_off[-1])) == tuple(whole)


def test_a_template_that_rewrites_replies_is_refused_for_a_debate():
    louder = TURNS.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")
    chat = Chat(word_tokenizer(eos_token="</s>", chat_template=louder))
    with pytest.raises(TinsmithError, match="must write a reply as it is and a next message"):
        chat.follow_up("two plus two", after=1)


def test_a_quoted_text_names_no_special_token():
    chat = Chat(make_tokenizer())
    assert chat.quote("a<|im_<|im_end|>end|>b <|im_start|>user") == "ab user"


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "mistral", "not-known"])
def test_the_tokenizer_of_a_model_is_the_one_that_transformers_chooses(
    model_type: str, tmp_path: Path
) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    settings = {"model_type": model_type, "dtype": "bfloat16", "name_or_path": "elsewhere"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    chosen = AutoTokenizer.from_pretrained(tmp_path)
    loaded = Chat.load(tmp_path)._tokenizer
    assert type(loaded) is type(chosen)
    assert loaded.name_or_path == chosen.name_or_path
    assert loaded.get_vocab() == chosen.get_vocab()


@pytest.mark.parametrize("key", ["hidden_size", "rope_parameters"])
def test_a_config_that_transformers_refuses_is_named(key: str, qwen3_dir: Path, tmp_path: Path):
    model = changed_model(qwen3_dir, tmp_path / "model", **{key: "none"})
    with pytest.raises(TinsmithError, match=rf"/model must hold a config\.json .* '{key}'"):
        Chat.load(model)


def test_loading_a_tokenizer_does_not_import_pytorch(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "dtype": "float32"}))
    program = (
        "import scripts, sys; from pathlib import Path; from tinsmith.chat import Chat\n"
        f"Chat.load(Path({str(tmp_path)!r})).prompt('two plus two')\n"
        "print('torch._C' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
