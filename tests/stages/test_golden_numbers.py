"""A few seeded steps of each stage as numbers, so that no refactoring changes the science unseen.

They hold to one part in a thousand: another CPU rounds otherwise, while a changed loss, advantage,
mask, seed or optimizer field moves them by far more. A change that is meant updates them by itself
and says why.
"""

from collections.abc import Callable

import pytest

from tests.stages.test_stages import GRPO, RAFT_PLUS_PLUS, REJECTION, SUPERVISED, train
from tinsmith import config
from tinsmith.stages import StageContext

NAMES = ("loss", "grad_norm", "num_trained_tokens")
GOLDEN = [
    (SUPERVISED, [(6.69505, 131.7392, 12), (5.25217, 112.2371, 12), (4.17684, 110.0174, 12)]),
    (REJECTION, [(5.67427, 170.9776, 40), (5.86081, 170.6910, 32), (5.90692, 80.4322, 20)]),
    (RAFT_PLUS_PLUS, [(-1.0, 170.9776, 40), (-1.0, 112.8217, 16), (-1.0, 119.1303, 32)]),
    (GRPO, [(0.0, 90.9889, 64), (0.0, 105.0578, 48), (0.0, 99.7024, 64)]),
]


@pytest.mark.parametrize(
    ("options", "expected"), GOLDEN, ids=["supervised", "rejection", "raft++", "grpo"]
)
def test_the_first_steps_of_a_stage_stay_what_they_were(
    options: config.OwnStage,
    expected: list[tuple[float, ...]],
    make_context: Callable[..., StageContext],
):
    records = train(options.model_copy(update={"steps": 3}), make_context())
    for record, numbers in zip(records, expected, strict=True):
        found = [record.metrics[name] for name in NAMES]
        assert found == pytest.approx(numbers, rel=1e-3, abs=1e-5)
