"""The working folder of a stage, and the files that it leaves."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tinsmith.chat import Chat
from tinsmith.config.checkpoints import Existing
from tinsmith.errors import TinsmithError
from tinsmith.progress import Progress, Saved, begin, fingerprint, write_progress
from tinsmith.step_files import read_steps, write_metrics, write_step
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.transcript import shown_steps, write_step_pages, write_transcript
from tinsmith.types import Completion, Problem, Reward, Sample, StepRecord, Turn

CHAT = Chat(make_tokenizer())
SAVED = Saved(
    name="step-4",
    kind="periodic",
    step=4,
    model_id="run",
    state="tinker://run/weights/step-4",
    sampler="tinker://run/sampler_weights/step-4",
    saved_at="2026-01-01T00:00:00+00:00",
    validation_accuracy=0.5,
)
PROGRESS = Progress("f", (SAVED,), {"0": "tinker://run/sampler_weights/opponent-0"}, ("run",))


def record(step: int, text: str = "85") -> StepRecord:
    tokens = CHAT.reply(text)
    completion = Completion(tokens, (-0.5,) * len(tokens), text, is_finished=True)
    sample = Sample(
        Problem("id", "<27+58>", "85"),
        0,
        1,
        Turn("policy", CHAT.prompt("27+58"), completion),
        Reward(1.0, {"correct": 1.0}, is_right=True),
        (0.5,) * len(tokens),
        (-0.6,) * len(tokens),
    )
    return StepRecord(step, {"reward_mean": 0.25, "loss": 1.5}, (sample,))


def test_progress_comes_back_as_it_was_written(tmp_path: Path):
    write_progress(tmp_path, PROGRESS)
    assert begin(tmp_path, "f", "resume") == PROGRESS
    assert (PROGRESS.next_step, PROGRESS.state) == (4, "tinker://run/weights/step-4")


@pytest.mark.parametrize("existing", ["resume", "delete", "raise", "ask"])
def test_nothing_to_go_on_from_leaves_no_old_steps(existing: Existing, tmp_path: Path):
    write_step(tmp_path / "steps", record(0), CHAT)
    write_progress(tmp_path, Progress("f", runs=("killed",)))
    assert begin(tmp_path, "f", existing) == Progress("f", runs=("killed",))
    assert not (tmp_path / "steps").exists()


@pytest.mark.parametrize(("existing", "inputs"), [("delete", "f"), ("resume", "other")])
def test_a_stage_that_starts_again_keeps_but_the_runs_in_which_to_clear_up(
    existing: Existing, inputs: str, tmp_path: Path
):
    write_step(tmp_path / "steps", record(0), CHAT)
    write_progress(tmp_path, PROGRESS)
    assert begin(tmp_path, inputs, existing) == Progress(inputs, runs=("run",))
    assert not (tmp_path / "steps").exists()


@pytest.mark.parametrize(("inputs", "said"), [("f", "after step 3, and"), ("g", "have changed")])
def test_raise_stops_where_there_is_something_to_go_on_from(inputs: str, said: str, tmp_path: Path):
    write_progress(tmp_path, PROGRESS)
    with pytest.raises(TinsmithError, match=f"{said}.*set it to 'resume'"):
        begin(tmp_path, inputs, "raise")
    assert begin(tmp_path, "f", "resume") == PROGRESS


def test_only_a_terminal_is_asked(tmp_path: Path):
    write_progress(tmp_path, PROGRESS)
    with pytest.raises(TinsmithError, match="no terminal to ask on"):
        begin(tmp_path, "f", "ask", io.StringIO("r\n"))


@pytest.mark.parametrize(("typed", "goes_on"), [("what?\nr\n", True), ("delete\n", False)])
def test_what_a_terminal_answers_is_done(
    typed: str, goes_on: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_progress(tmp_path, PROGRESS)
    keyboard, screen = os.openpty()
    os.write(keyboard, typed.encode())
    with open(screen) as terminal, open(keyboard):
        assert (begin(tmp_path, "f", "ask", terminal) == PROGRESS) == goes_on
    assert capsys.readouterr().err.count("[r]esume, [d]elete") == typed.count("\n")


def test_a_terminal_may_stop_a_stage_and_is_offered_no_other_inputs_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_progress(tmp_path, PROGRESS)
    keyboard, screen = os.openpty()
    os.write(keyboard, b"r\ns\n")
    with open(screen) as terminal, open(keyboard), pytest.raises(TinsmithError, match="'raise'"):
        begin(tmp_path, "other", "ask", terminal)
    assert "[r]esume" not in capsys.readouterr().err


def test_an_unreadable_progress_file_says_what_to_delete(tmp_path: Path):
    (tmp_path / "progress.json").write_text('{"saved": [4')
    with pytest.raises(TinsmithError, match=r"progress\.json.*delete"):
        begin(tmp_path, "f", "resume")


def test_the_fingerprint_depends_on_settings_and_on_every_input(tmp_path: Path):
    file = tmp_path / "train.jsonl"
    file.write_text("one")
    before = fingerprint("settings", [file])
    assert fingerprint("others", [file]) != before
    file.write_text("two")
    assert fingerprint("settings", [file]) != before


def test_a_step_file_holds_tokens_text_logprobs_rewards_and_advantages(tmp_path: Path):
    write_step(tmp_path, record(3), CHAT)
    step = json.loads((tmp_path / "training_step_3.json").read_text())
    (sample,) = step["samples"]
    assert sample["tokens"] == list(CHAT.reply("85"))
    assert sample["pieces"] == ["8", "5", "<|im_end|>"]
    assert sample["completion"] == "85"
    assert sample["logprobs"] == [-0.5] * 3
    assert sample["trainer_logprobs"] == [-0.6] * 3
    assert sample["reward_terms"] == {"correct": 1.0}
    assert sample["advantages"] == [0.5] * 3
    assert "27+58" in sample["prompt"]


def test_metrics_have_a_line_per_step_in_order(tmp_path: Path):
    for step in (1, 0):
        write_step(tmp_path / "steps", record(step), CHAT)
    write_metrics(tmp_path / "metrics.jsonl", tmp_path / "steps", 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = {"reward_mean": 0.25, "loss": 1.5}
    assert [json.loads(line) for line in lines] == [{"step": k} | expected for k in (0, 1)]


def test_a_transcript_escapes_what_was_written_and_shades_what_was_trained(tmp_path: Path):
    write_step(tmp_path, record(0, "<script>"), CHAT)
    write_transcript(tmp_path / "t.html", "grpo & more", read_steps(tmp_path, 1), 1)
    page = (tmp_path / "t.html").read_text()
    assert ">&lt;</span>" in page  # the token alone, as the model wrote it
    assert "><</span>" not in page
    assert "<summary>&lt;27+58&gt;</summary><pre>" in page  # opens to the whole prompt
    assert "grpo &amp; more" in page
    assert "hsl(140" in page


def test_every_step_gets_a_page_with_all_of_its_samples(tmp_path: Path):
    samples = record(0).samples * 30
    for step in (0, 1):
        write_step(tmp_path, StepRecord(step, {"loss": 1.5}, samples), CHAT)
    write_step_pages(tmp_path, "grpo & more", read_steps(tmp_path, 2))
    for step in (0, 1):
        page = (tmp_path / f"training_step_{step}.html").read_text()
        assert f"Step {step}" in page
        assert page.count("<td class='number'>1</td>") == 30


def test_a_transcript_shows_a_debate_in_turns_with_its_verdict(tmp_path: Path):
    """Its samples come in the order in which they were trained on, others between them."""
    said = [("second", 3, "43"), ("first", 0, "41"), ("second", 1, "40"), ("first", 2, "42")]
    verdicts = {"first": 0.5, "second": -0.5}
    (sample,) = record(0).samples
    samples = [
        replace(
            sample,
            turn=replace(
                sample.turn,
                speaker=speaker,
                completion=replace(sample.turn.completion, tokens=CHAT.reply(text)),
            ),
            rollout=rollout,
            place=place,
            verdict=verdicts[speaker],
        )
        for rollout in (1, 0)
        for speaker, place, text in said
    ]
    write_step(tmp_path, replace(record(0), samples=tuple(samples)), CHAT)
    write_transcript(tmp_path / "t.html", "debate", read_steps(tmp_path, 1), 1)
    page = (tmp_path / "t.html").read_text()
    debate = page.split("<h3>")[1]
    assert page.count("<h3>") == 2
    assert "first wins (" in debate
    assert "first +0.5" in debate
    assert "second -0.5" in debate
    assert re.findall(r"<tr><td>(\w+)</td>", debate) == ["first", "second"] * 2
    words = re.findall(r">(\d)</span>", debate)
    assert "".join(words) == "41404243"


def test_a_long_stage_shows_its_first_and_last_step_among_a_dozen():
    shown = shown_steps(500)
    assert len(shown) == 12
    assert {0, 499} <= shown
    assert shown_steps(3) == {0, 1, 2}
