"""What is said, and when, about metrics beyond their bounds."""

import logging
from typing import get_args

import pytest

from tinsmith.config import DEFAULT_MONITORS, Config, Monitor, check_section
from tinsmith.errors import TinsmithError
from tinsmith.monitors import ADVICE, Watch

COLLAPSE = Monitor(metric="entropy_nats", below=0.1, for_steps=3)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.levelno == logging.WARNING]


def test_a_streak_warns_when_it_is_long_enough_and_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
):
    watch = Watch([COLLAPSE], "grpo")
    for step, entropy in enumerate([0.05, 0.05, 0.5, 0.04, 0.03, 0.02]):
        watch.look(step, {"entropy_nats": entropy})
    (said,) = warnings(caplog)
    assert said.startswith(
        "step 5 of stage grpo: entropy_nats is 0.02, below 0.1 for 3 steps in a row"
    )
    assert "lower learning_rate" in said


def test_what_lasts_is_said_again_after_as_many_steps(caplog: pytest.LogCaptureFixture):
    watch = Watch([COLLAPSE], "grpo")
    for step in range(7):
        watch.look(step, {"entropy_nats": 0.0})
    assert [said.split()[1] for said in warnings(caplog)] == ["2", "5"]


def test_a_monitor_can_end_the_stage():
    watch = Watch([Monitor(metric="kl_nats", above=0.01, then="stop")], "grpo")
    watch.look(0, {"kl_nats": 0.009})
    with pytest.raises(TinsmithError, match=r"step 1 .* kl_nats is -0\.02, above 0\.01"):
        watch.look(1, {"kl_nats": -0.02})


def test_steps_before_a_stage_was_cut_off_count_and_are_not_said_again(
    caplog: pytest.LogCaptureFixture,
):
    watch = Watch([COLLAPSE], "grpo")
    for _ in range(5):
        watch.recall({"entropy_nats": 0.0})
    assert not warnings(caplog)
    watch.look(5, {"entropy_nats": 0.0})
    assert len(warnings(caplog)) == 1


def test_a_metric_that_a_stage_does_not_have_is_not_beyond_any_bound(
    caplog: pytest.LogCaptureFixture,
):
    Watch(DEFAULT_MONITORS, "supervised").look(0, {"loss": 1.0})
    assert not warnings(caplog)


def test_every_metric_that_can_be_watched_comes_with_advice():
    assert set(ADVICE) == set(get_args(Monitor.model_fields["metric"].annotation))


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ({"metric": "kl"}, "monitors[0].metric must be 'kl_nats'"),
        ({"metric": "kl_nats"}, "needs either `above` or `below`"),
        ({"metric": "kl_nats", "above": 1.0, "below": 2.0}, "needs either `above` or `below`"),
    ],
)
def test_a_monitor_without_metric_or_bound_is_refused(monitor: dict, said: str):
    values = {
        "model": {"kind": "tiny"},
        "data": {"kind": "arithmetic"},
        "task": {"kind": "arithmetic"},
        "stages": [{"kind": "grpo", "steps": 1}],
        "monitors": [monitor],
    }
    with pytest.raises(TinsmithError) as error:
        check_section(Config, values, "config.yaml")
    assert said in str(error.value)
