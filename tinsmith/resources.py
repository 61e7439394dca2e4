"""What a job asks of Snakemake, and through it of SLURM: cores, memory, time, GPUs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinsmith.config import Config

MODEL_RULES = ("train_stage", "evaluate_stage", "export_run")
# Preemptions are attempts too, and there may be many.
MAX_FACTOR = 4
RunsOf = Callable[[Any], Sequence[Config]]


@dataclass(frozen=True, slots=True)
class Default:
    """Enough for the tiny model; a larger one needs `resources:` in the config."""

    mem_mb: int
    runtime: int


DEFAULTS = {
    "check_setup": Default(2000, 10),
    "prepare_model": Default(4000, 240),
    "prepare_data": Default(4000, 60),
    "train_stage": Default(4000, 720),
    "evaluate_stage": Default(4000, 240),
    "export_run": Default(4000, 120),
    "write_report": Default(2000, 15),
}


@dataclass(frozen=True, slots=True)
class Request:
    """The resources of a rule's jobs; Snakemake calls each method with a job's wildcards. A job
    that serves several runs asks for the most that any of them does."""

    rule: str
    configs: RunsOf

    def threads(self, wildcards: Any) -> int:
        """Where the model runs, `backend.threads`."""
        return max(self._cores(config) for config in self.configs(wildcards))

    def mem_mb(self, wildcards: Any, attempt: int) -> int:
        """Attempt k asks for k times the memory, up to four times and to `max_mem_mb`."""
        return max(self._scaled(config, "mem_mb", attempt) for config in self.configs(wildcards))

    def runtime(self, wildcards: Any, attempt: int) -> int:
        """In minutes; attempt k asks for k times the time, up to four times and `max_runtime`."""
        return max(self._scaled(config, "runtime", attempt) for config in self.configs(wildcards))

    def gpus(self, wildcards: Any) -> int:
        """Where the model runs, `backend.gpus`; check_setup looks at what training will get."""
        return max(num_gpus(self.rule, config) for config in self.configs(wildcards))

    def gpu_model(self, wildcards: Any) -> str:
        """The model as SLURM calls it; empty for any, and where no GPU is asked for."""
        for config in self.configs(wildcards):
            own: str | None = getattr(config.resources, self.rule).gpu_model
            model = own or config.resources.gpu_model
            if model is not None and num_gpus(self.rule, config):
                return model
        return ""

    def _cores(self, config: Config) -> int:
        own = getattr(config.resources, self.rule).cores
        return own or (config.backend.threads if self.rule in MODEL_RULES else 1)

    def _scaled(self, config: Config, name: str, attempt: int) -> int:
        asked = getattr(getattr(config.resources, self.rule), name)
        most = getattr(config.resources, f"max_{name}")
        wanted = min(attempt, MAX_FACTOR) * (asked or getattr(DEFAULTS[self.rule], name))
        return min(wanted, most) if most is not None else wanted


def num_gpus(rule: str, config: Config) -> int:
    """How many GPUs a job of `rule` is given: a service elsewhere has its own."""
    own = getattr(config.resources, rule).gpus
    if own is not None:
        return own
    if config.backend.kind != "local":
        return 0
    return config.backend.gpus if rule in (*MODEL_RULES, "check_setup") else 0
