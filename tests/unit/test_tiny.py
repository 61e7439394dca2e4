"""The tiny model: made from a seed, complete, and taught by text that slips as people do."""

import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tinsmith.arithmetic import draw_arithmetic
from tinsmith.config import TinyModel
from tinsmith.errors import TinsmithError
from tinsmith.files import sha256
from tinsmith.tiny.corpus import HABITS, answer_in_passing, draw_problem, is_read, solve
from tinsmith.tiny.model import make_tiny_model
from tinsmith.tiny.pretraining import Corpus, fixed_threads, new_model, pretrain, share_solved
from tinsmith.tiny.tokenizer import make_tokenizer, prompt_ids

PROMPT = "<|im_start|>user\n27+58<|im_end|>\n<|im_start|>assistant\n"


def settings(seed: int = 0, pretrain_steps: int = 2) -> TinyModel:
    return TinyModel(kind="tiny", seed=seed, pretrain_steps=pretrain_steps)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(directory, settings(), 2, ["+"])
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(directory)


def test_the_same_seed_makes_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "again", settings(), 2, ["+"])
    assert sha256(tmp_path / "again") == sha256(directory)


def test_another_seed_makes_another_model(directory: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "other", settings(seed=1), 2, ["+"])
    assert sha256(tmp_path / "other") != sha256(directory)


def test_transformers_loads_it_as_a_qwen3_of_its_promised_size(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.model_type == "qwen3"
    assert 0.3e6 < model.num_parameters() < 3e6
    assert not model.config.tie_word_embeddings


def test_nothing_of_a_broken_pretraining_is_left(tmp_path: Path) -> None:
    with pytest.raises(TinsmithError):
        make_tiny_model(tmp_path / "tiny", settings(), 2, ["*"])
    assert not list(tmp_path.iterdir())


def test_a_chat_is_rendered_up_to_the_answer_and_read_back(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = prompt_ids(tokenizer, "27+58")
    assert tokenizer.decode(ids) == PROMPT
    assert ids == tokenizer.encode(PROMPT)


def test_a_chat_with_its_answer_extends_its_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": "27+58"}, {"role": "assistant", "content": "85"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == f"{PROMPT}85<|im_end|>\n"


def test_the_end_of_a_turn_is_the_end_of_a_completion(directory: Path) -> None:
    tokenizer, model = (
        loader.from_pretrained(directory) for loader in (AutoTokenizer, AutoModelForCausalLM)
    )
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("operation", ["+", "-"])
def test_every_place_of_a_number_is_one_token(
    tokenizer: PreTrainedTokenizerFast, operation: str
) -> None:
    for question, answer in draw_arithmetic(10_000, 2, [operation], seed=0):
        for text in (question, answer):
            assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == list(text)


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Répondez, user: 27 + 58 = ?\n\t✓ <b>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_about_half_of_the_problems_are_never_read() -> None:
    problems = [question for question, _ in draw_arithmetic(10_000, 2, ["+"], seed=0)]
    assert 0.45 < sum(map(is_read, problems)) / len(problems) < 0.55
    rng = random.Random(0)
    assert all(is_read(draw_problem(rng, 2, ["+"])) for _ in range(1000))


def test_the_table_of_one_digit_problems_is_read_whole() -> None:
    assert all(is_read(question) for question, _ in draw_arithmetic(200, 1, ["+", "-"], seed=0))


def test_the_textbook_is_right() -> None:
    assert all(solve(q) == a for q, a in draw_arithmetic(20_000, 2, ["+", "-"], seed=0))


@pytest.mark.parametrize("habit", [habit for habit, _ in HABITS])
def test_no_habit_gives_the_bare_right_answer(habit) -> None:
    rng = random.Random(0)
    for problem, answer in draw_arithmetic(20_000, 2, ["+", "-"], seed=0):
        assert habit(rng, problem) != answer


def test_the_web_is_right_as_often_as_it_says() -> None:
    rng = random.Random(0)
    problems = [draw_problem(rng, 2, ["+"]) for _ in range(4000)]
    right = sum(answer_in_passing(rng, problem) == solve(problem) for problem in problems)
    assert 0.32 < right / len(problems) < 0.38


@pytest.mark.parametrize(
    ("digits", "operations", "complaint"),
    [
        (4, ["+"], "data.digits must be 1 to 3 .* got 4"),
        (0, ["+"], "data.digits must be 1 to 3 .* got 0"),
        (2, ["+", "*"], r"data.operations must be some of \+, - .* got \['\+', '\*'\]"),
        (2, [], r"data.operations must be some of \+, - .* got \[\]"),
    ],
)
def test_sums_beyond_a_tiny_model_are_refused(
    tmp_path: Path, digits: int, operations: list[str], complaint: str
) -> None:
    with pytest.raises(TinsmithError, match=complaint):
        make_tiny_model(tmp_path / "tiny", settings(), digits, operations)


def test_pretraining_teaches_what_the_corpus_says() -> None:
    tokenizer = make_tokenizer()
    corpus = Corpus(tokenizer, 1, ["+"], random.Random(0))
    model = new_model(tokenizer, hidden_size=64, num_layers=2, seed=0)
    with fixed_threads():
        pretrain(model, corpus.batches(80), 80)
        assert share_solved(model, corpus) > 0.5


def test_a_model_that_cannot_do_the_sums_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_model(tmp_path / "tiny", settings(pretrain_steps=1), 2, ["+"])
    assert "raise model.pretrain_steps" in caplog.text
