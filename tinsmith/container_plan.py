"""What the rules ask of the config's container: its image, what builds it, what jobs see in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.config import Container
from tinsmith.container import apptainer_arguments, has_gpu
from tinsmith.metadata import git_commit

_ROOT = Path(__file__).resolve().parents[1]
_SYSTEM_TORCH = ("scripts/gh200_setup_local_tinker.sh", "scripts/torch_report.py")
# The definitions of containers/, and the files that each copies into its image.
_COPIED = {
    "engine": ("envs/engine.txt",),
    "engine-cuda": ("envs/engine.txt", *_SYSTEM_TORCH),
    "vllm": ("envs/engine.txt", "envs/vllm-cuda.txt", *_SYSTEM_TORCH),
}


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """The config's section, and the files and folders that the user may keep anywhere."""

    settings: Container
    places: tuple[Path, ...]

    @property
    def is_used(self) -> bool:
        return self.settings.use

    def image(self, wildcards: Any = None) -> str:
        """The image of the config, whether the rules run in it or not."""
        return self.settings.image or f"containers/{self.settings.definition}.sif"

    def used_image(self, wildcards: Any) -> list[str]:
        return [self.image()] if self.is_used else []

    def outside(self, wildcards: Any) -> None:
        """The image of a rule that runs in none whatever the config says."""

    def pattern(self) -> str:
        """The images that can be built."""
        return "|".join(_COPIED)

    def copied(self, wildcards: Any) -> list[str]:
        """What an image's definition copies into it."""
        return list(_COPIED[wildcards.image])

    def settings_json(self, wildcards: Any) -> str:
        return self.settings.model_dump_json()

    def apptainer_arguments(self, given: str) -> str:
        """For every job that runs in the image."""
        return apptainer_arguments(
            given,
            image=Path(self.image()),
            outside=[_ROOT, *self.places],
            commit=git_commit(),
            has_gpu=has_gpu(),
        )
