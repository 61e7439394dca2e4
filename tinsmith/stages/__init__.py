"""Training stages: one file with one loop each. The registry is explicit."""

from tinsmith.stages import grpo, rejection, supervised
from tinsmith.stages.context import StageContext

STAGES = {"supervised": supervised.train, "rejection": rejection.train, "grpo": grpo.train}

__all__ = ["STAGES", "StageContext"]
