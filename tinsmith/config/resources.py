"""What the jobs of each rule ask of the machine or the cluster: `resources:`."""

from typing import Annotated

from pydantic import Field, model_validator

from tinsmith.config.sections import GPU_MODEL, Count, Section, Seed

GpuModel = Annotated[str, Field(pattern=GPU_MODEL)]


class JobResources(Section):
    """What a job of one rule asks for; None is the rule's default. `runtime` is in minutes, as
    Snakemake's resource of that name is."""

    cores: Count | None = None
    mem_mb: Count | None = None
    runtime: Count | None = None
    gpus: Seed | None = None
    gpu_model: GpuModel | None = None


class Resources(Section):
    """Each rule's, the GPU model of all that ask for a GPU, and what no attempt goes beyond: a job
    that asks for more than its partition allows would wait for ever."""

    check_setup: JobResources = JobResources()
    prepare_model: JobResources = JobResources()
    prepare_data: JobResources = JobResources()
    train_stage: JobResources = JobResources()
    evaluate_stage: JobResources = JobResources()
    export_run: JobResources = JobResources()
    write_report: JobResources = JobResources()
    gpu_model: GpuModel | None = None
    max_mem_mb: Count | None = None
    max_runtime: Count = 1440

    @model_validator(mode="after")
    def _keep_their_bounds(self) -> "Resources":
        for rule, asked in self:
            for name, most in (("mem_mb", self.max_mem_mb), ("runtime", self.max_runtime)):
                value = getattr(asked, name, None)
                if value is not None and most is not None and value > most:
                    raise ValueError(
                        f"{rule}.{name} must be at most resources.max_{name} = {most}, got {value}"
                    )
        return self
