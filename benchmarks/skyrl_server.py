"""SkyRL's server; runs in .venvs/skyrl (envs/skyrl.txt) as a child of benchmarks/skyrl.py.

Its own entry point starts the engine by `uv run`, which wants a checkout of SkyRL's repository;
here the same engine is started by this interpreter. Arguments: the engine's config as JSON, the
port, and the number of CPUs that the server may use.
"""

# SkyRL is in an environment of its own, where pyright does not look.
# pyright: reportMissingImports=false
import os
import sys
from typing import Any

import uvicorn
from skyrl.tinker import api
from skyrl.tinker.config import EngineConfig, config_to_argv


def main() -> None:
    config, port, num_cpus = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cpus])
    api._build_uv_run_cmd_engine = _engine_command
    api.app.state.engine_config = EngineConfig.model_validate_json(config)
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="warning")


def _engine_command(_: list[str], config: Any) -> list[str]:
    return [sys.executable, "-m", "skyrl.tinker.engine", *config_to_argv(config)]


if __name__ == "__main__":
    main()
