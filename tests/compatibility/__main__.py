"""`python -m tests.compatibility`: try every SDK version and write docs/compatibility.md."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tinker

from tests.compatibility.context import MODEL
from tests.compatibility.environments import ROOT, other_versions, python_of
from tests.compatibility.outcome import Outcome
from tests.compatibility.table import write_table
from tests.compatibility.trial import try_version
from tests.models import make_model
from tinsmith.backend.wire.sdk_versions import OLDEST
from tinsmith.serving import local_server

# The commands are those of the newest SDK: the earlier ones have them in part.
OPTIONS = {tinker.__version__: ("--commands",)}
PAGE = ROOT / "docs" / "compatibility.md"


def main() -> None:
    pythons = {tinker.__version__: Path(sys.executable)}
    pythons |= {version: python_of(version) for version in reversed(other_versions())}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        models = Path(folder) / "models"
        make_model(models / MODEL, "qwen3")

        def on_own_server(version: str) -> dict[str, Outcome]:
            place = Path(folder) / version
            options = [f"--store={place / 'store'}", "--threads=1"]
            sources = {MODEL: str(models / MODEL)}
            with local_server(sources, options, log=place / "log") as endpoint:
                print(f"Trying tinker {version} ...", file=sys.stderr)
                return try_version(pythons[version], endpoint, models, *OPTIONS.get(version, ()))

        outcomes = dict(zip(pythons, threads.map(on_own_server, pythons), strict=True))
    PAGE.write_text(write_table(outcomes, OLDEST), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
