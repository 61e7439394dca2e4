"""SkyRL's server; runs in .venvs/skyrl (envs/skyrl.txt) as a child of benchmarks/skyrl.py.

Two things stand in its own entry point's way. It starts the engine by `uv run`, which wants a
checkout of SkyRL's repository; here the engine is started by this interpreter. And with Python
3.11, which it allows, pydantic refuses its use of typing.TypedDict; here it gets that of
typing_extensions. Arguments: the engine's config as JSON, the port, and the number of CPUs that
the server may use; or `engine` and its options.
"""

# SkyRL is in an environment of its own, where pyright does not look.
# pyright: reportMissingImports=false
import os
import runpy
import sys
import typing
from typing import Any

import typing_extensions


def main() -> None:
    typing.TypedDict = typing_extensions.TypedDict
    if sys.argv[1] == "engine":
        sys.argv[1:] = sys.argv[2:]
        runpy.run_module("skyrl.tinker.engine", run_name="__main__", alter_sys=True)
    else:
        _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))


def _serve(config: str, port: int, num_cpus: int) -> None:
    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cpus])
    api._build_uv_run_cmd_engine = _engine_command
    api.app.state.engine_config = EngineConfig.model_validate_json(config)
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="warning")


def _engine_command(_: list[str], config: Any) -> list[str]:
    from skyrl.tinker.config import config_to_argv

    return [sys.executable, "-m", "benchmarks.skyrl_server", "engine", *config_to_argv(config)]


if __name__ == "__main__":
    main()
