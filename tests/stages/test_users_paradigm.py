"""The paradigm of the user's own that docs/add-a-paradigm.md trains against frozen models."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tinker
import yaml

from tests.pages import DOCS, blocks_in
from tests.stages.test_stages import train
from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.frozen import FrozenModels
from tinsmith.opponents import open_snapshots
from tinsmith.paradigms import make_paradigm, put_in_training
from tinsmith.stages import StageContext
from tinsmith.types import StepRecord

PAGE = DOCS / "add-a-paradigm.md"
GRPO = {
    "kind": "grpo",
    "steps": 3,
    "problems_per_step": 4,
    "samples_per_problem": 4,
    "eval_problems": 4,
    "max_tokens": 4,
}


@pytest.fixture
def section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.UserParadigm:
    """The page's second example, as a user copies it."""
    code = blocks_in(PAGE, "python")[1]
    name = re.match(r"# (\w+\.py), in the folder", code)
    assert name is not None
    (tmp_path / name[1]).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = blocks_in(PAGE, "yaml")[1]
    return config.check_section(config.UserParadigm, yaml.safe_load(text)["paradigm"], str(PAGE))


def train_duel(
    section: config.UserParadigm, context: StageContext, frozen: FrozenModels
) -> tuple[list[StepRecord], dict[str, str]]:
    """Three steps as scripts.train makes them; and the snapshots that were taken."""
    values: dict[str, Any] = {
        "run": "seed=0",
        "seed": 0,
        "model_name": "llama",
        "stage": GRPO,
        "task": {"kind": "arithmetic"},
        "paradigm": section.model_dump(mode="json"),
        "lora": {},
        "backend": {},
    }
    settings = config.check_section(config.TrainSettings, values, "test")
    snapshots = open_snapshots(settings, context.training_client, frozen, {})
    paradigm = make_paradigm(section, frozen)
    playing = replace(
        context, paradigm=put_in_training(paradigm, snapshots), heldout_paradigm=paradigm
    )
    if snapshots:
        snapshots.take(0)
    records = train(settings.stage, playing)
    return records, snapshots.paths if snapshots else {}


def test_the_paradigm_of_the_docs_is_trained_against_snapshots_and_evaluated_against_the_base(
    section: config.UserParadigm,
    make_context: Callable[..., StageContext],
    service: tinker.ServiceClient,
    chat: Chat,
) -> None:
    asked: list[str | None] = []

    class Counting(FrozenModels):
        def client(self, checkpoint: str | None) -> tinker.SamplingClient:
            asked.append(checkpoint)
            return super().client(checkpoint)

    frozen = Counting(service, "llama", chat)
    records, paths = train_duel(section, make_context(), frozen)
    assert set(paths) == {"0"}
    assert set(asked) == {None, paths["0"]}
    for record in records:
        speakers = {(s.turn.speaker, s.reward is None) for s in record.samples}
        assert speakers == {("policy", False), ("opponent", True)}
        assert {"reward_own_mean", "reward_opponent_mean"} <= record.metrics.keys()
    assert "validation_accuracy" in records[-1].metrics


def test_against_itself_the_paradigm_of_the_docs_takes_no_snapshots(
    section: config.UserParadigm,
    make_context: Callable[..., StageContext],
    service: tinker.ServiceClient,
    chat: Chat,
) -> None:
    alone = section.model_copy(update={"opponent": config.SelfOpponent(kind="self")})
    records, paths = train_duel(alone, make_context(), FrozenModels(service, "llama", chat))
    assert len(records) == GRPO["steps"]
    assert paths == {}
