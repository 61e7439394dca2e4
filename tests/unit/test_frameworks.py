"""TensorFlow and JAX stay out of every process of ours, where they are installed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("tensorflow", "jax", "jaxlib", "flax")
# Imports every module of ours but those for the environments of vLLM and of trackers, and then what
# loads frameworks late.
PROGRAM = f"""
import importlib, pathlib, sys
files = [*pathlib.Path("tinsmith").rglob("*.py"), *pathlib.Path("scripts").glob("*.py")]
for file in files:
    if {{"vllm_worker", "tracker_worker"}} & {{*file.parts}}:
        continue
    importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
import datasets, peft, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert {{"transformers", "datasets", "torch"}} <= sys.modules.keys()
assert not datasets.config.TF_AVAILABLE and not datasets.config.JAX_AVAILABLE
assert datasets.config.TORCH_AVAILABLE
loaded = [name for name in {FRAMEWORKS} if name in sys.modules]
assert not loaded, loaded
"""


def test_no_module_of_ours_loads_tensorflow_or_jax_even_where_the_environment_wants_one(
    tmp_path: Path,
):
    for name in FRAMEWORKS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("__version__ = '9.9'\n")
        info = tmp_path / f"{name}-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "USE_TF": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
