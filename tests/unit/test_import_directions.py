"""Which part of Tinsmith may import which; each heavy package has its place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tinsmith"
# What the server half may use of the rest: the floor under both halves.
FLOOR = {
    "tinsmith.backend",
    "tinsmith.chat",
    "tinsmith.errors",
    "tinsmith.files",
    "tinsmith.objectives.losses",
    "tinsmith.processor",
    "tinsmith.settings",
}
LOGPROB_CHECK = "scripts/check_local_sampling_logprobs.py"
TORCH_REPORT = "scripts/torch_report.py"
RECIPES_LAUNCHER = "cookbook/launcher.py"  # runs in the environment of the cookbook
# The one place, or the few, where a heavy package is imported.
PLACES = {
    "torch": (
        "backend/",
        "objectives/losses.py",
        "export.py",
        "tiny/",
        LOGPROB_CHECK,
        TORCH_REPORT,
    ),
    "transformers": ("backend/", "export.py", "tiny/", "chat.py", LOGPROB_CHECK, RECIPES_LAUNCHER),
    "peft": ("backend/", "export.py"),
    "numba": (
        "backend/compiled/",
        "backend/sampling/decode_attention.py",
    ),
    "fastapi": ("backend/wire/",),
    "uvicorn": ("backend/",),
    "starlette": ("backend/wire/", "backend/listening.py"),
    "prometheus_client": ("backend/metrics.py", "backend/wire/health.py"),
    "structlog": ("backend/",),
    "matplotlib": ("report/",),
    "jinja2": ("report/", "chat.py", "inference/"),
    "math_verify": ("tasks/math_worker.py",),
    "rouge_score": ("tasks/summary.py",),
    "pydantic": ("config/", "settings/", "cli.py", "tasks/constraints.py", "backend/"),
    "networkx": ("report/",),
    "datasets": ("hub.py",),
    "huggingface_hub": ("hub.py", "model_card.py", "backend/vllm_worker/"),
    "snakemake": (),
    "vllm": ("backend/vllm_worker/",),
    "wandb": ("tracker_worker/",),
    "tensorboardX": ("tracker_worker/",),
    "trackio": ("tracker_worker/",),
}


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def files(*folders: str) -> list[tuple[str, Path]]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), path) for path in found]


def test_the_client_half_never_imports_the_server_half() -> None:
    allowed = ("tinsmith/backend/", "tinsmith/cli.py")
    for name, path in files("tinsmith", "scripts"):
        if not name.startswith(allowed):
            wrong = [m for m in imports_of(path) if is_within(m, "tinsmith.backend")]
            assert not wrong, f"{name} imports {wrong}"


def test_the_server_half_imports_nothing_of_the_client_half() -> None:
    for name, path in files("tinsmith/backend"):
        ours = [m for m in imports_of(path) if is_within(m, "tinsmith")]
        wrong = [m for m in ours if not any(is_within(m, floor) for floor in FLOOR)]
        assert not wrong, f"{name} imports {wrong}"


def test_every_heavy_package_has_its_place() -> None:
    for name, path in files("tinsmith", "scripts"):
        inner = name.removeprefix("tinsmith/")
        for module in imports_of(path):
            places = PLACES.get(module.split(".")[0])
            assert places is None or inner.startswith(places), f"{name} imports {module}"


def test_nothing_shadows_the_sdk() -> None:
    assert not [path for _, path in files("tinsmith", "scripts") if path.stem == "tinker"]
    assert not (ROOT / "tinker").exists()


def test_importing_the_package_and_its_config_is_light() -> None:
    program = (
        "import sys, tinsmith, tinsmith.config, tinsmith.plan, tinsmith.job\n"
        "heavy = ['torch', 'transformers', 'peft', 'tinker', 'datasets', 'matplotlib', 'fastapi']\n"
        "sys.exit(str([name for name in heavy if name in sys.modules] or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
