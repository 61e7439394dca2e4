"""The programs of the rules import torch when they compute with it; the SDK is whole without."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Each line is true, or the program ends there.
LEFT_OUT = """
import sys, numpy as np
import scripts.train, scripts.evaluate, tinker
datum = tinker.Datum(
    model_input=tinker.ModelInput.from_ints([1, 2]),
    loss_fn_inputs={"weights": np.array([0.5, 1.0], np.float32)},
)
assert "torch" not in sys.modules
"""
THERE_WHEN_NEEDED = (
    LEFT_OUT
    + """
tensor = datum.loss_fn_inputs["weights"].to_torch()
import torch
assert isinstance(tensor, torch.Tensor) and tensor.tolist() == [0.5, 1.0]
again = tinker.Datum(model_input=datum.model_input, loss_fn_inputs={"weights": tensor})
assert again.loss_fn_inputs["weights"].tolist() == [0.5, 1.0]
assert tinker.TensorData.from_torch(torch.ones(2, dtype=torch.bfloat16)).dtype == "float32"
"""
)
THERE_BEFORE = """
import torch, scripts, tinker, tinker.types.tensor_data
assert tinker.types.tensor_data.torch is torch
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_training_and_evaluation_do_not_import_torch() -> None:
    run(LEFT_OUT)


def test_the_sdk_takes_and_makes_tensors_all_the_same() -> None:
    run(THERE_WHEN_NEEDED)


def test_torch_that_is_imported_before_stays_the_sdks() -> None:
    run(THERE_BEFORE)
