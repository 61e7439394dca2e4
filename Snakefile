"""Tinsmith: a base model and problems in; a trained, exported, evaluated adapter and a report out.

Every rule calls one program of scripts/, whose command line is the whole experiment.
"""

import os

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from tinsmith.errors import TinsmithError
from tinsmith.kept import clear, end_unused
from tinsmith.plan import make_plan


configfile: "config.yaml"


try:
    PLAN = make_plan(workflow.config_settings)
    if PLAN.container.is_used:
        deployment = workflow.deployment_settings
        deployment.imply_deployment_method(DeploymentMethod.APPTAINER)
        deployment.apptainer_args = PLAN.container.apptainer_arguments(
            deployment.apptainer_args
        )
except TinsmithError as error:
    raise WorkflowError(str(error)) from None


if workflow.is_main_process:
    os.environ.update(PLAN.announced())


# Servers that the jobs have left to each other; they would also end by themselves.
onsuccess:
    clear()


onerror:
    end_unused()


pathvars:
    results=PLAN.results(),


# Where the rules run with `container: true` (docs/containers.md).
container: PLAN.container.image()


include: "rules/container.smk"
include: "rules/gh200.smk"
include: "rules/setup.smk"
include: "rules/model.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/cookbook.smk"
include: "rules/export.smk"
include: "rules/evaluate.smk"
include: "rules/inspect.smk"
include: "rules/report.smk"


rule all:
    """The report, and every run's exported model."""
    default_target: True
    input:
        report="<results>/report.html",
        exports=PLAN.exports(),
