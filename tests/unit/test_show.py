"""What `tinsmith show` says of a step."""

from pathlib import Path

import pytest

from tinsmith.chat import Chat
from tinsmith.cli import main
from tinsmith.step_files import write_step
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.types import Completion, Problem, Reward, Sample, StepRecord, Turn

CHAT = Chat(make_tokenizer())


def sample(rollout: int, text: str, reward: float, advantage: float) -> Sample:
    tokens = CHAT.reply(text)
    completion = Completion(tokens, (-0.5,) * len(tokens), text, is_finished=True)
    return Sample(
        Problem("id", "27+58", "85"),
        0,
        rollout,
        Turn("policy", CHAT.prompt("27+58"), completion),
        Reward(reward, {"correct": reward}, is_right=reward > 0),
        (advantage,) * len(tokens),
    )


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    samples = (sample(0, "12", 0.0, -0.5), sample(1, "85", 1.0, 0.5))
    for step in (0, 1):
        record = StepRecord(step, {"reward_mean": 0.5}, samples)
        write_step(tmp_path / "steps", record, CHAT)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["show", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_the_last_step_is_shown_with_what_each_completion_earned(
    stage: Path, capsys: pytest.CaptureFixture[str]
):
    text = shown(capsys, stage)
    assert "Step 1: 2 of 2 samples" in text
    assert "reward 1 (correct 1)  centred 0.5  answer '85'" in text
    assert "reward 0 (correct 0)  centred -0.5" in text


def test_sorting_by_reward_shows_the_highest_first(stage: Path, capsys: pytest.CaptureFixture[str]):
    text = shown(capsys, stage, "--step", 0, "--sort", "reward", "--limit", 1)
    assert "Step 0: 1 of 2 samples" in text
    assert "rollout 1" in text
    assert "rollout 0" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "7"], "--step must be one of the steps 0 to 1"),
        (["--step", "-1"], "--step must be one of the steps 0 to 1"),
    ],
)
def test_a_step_that_is_not_there_is_refused_with_those_that_are(
    words: list[str], said: str, stage: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["show", str(stage), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show", str(tmp_path)]) == 2
    assert "must be the folder of a training stage" in capsys.readouterr().err
