"""Tinsmith: a base model and problems in; a trained, exported, evaluated adapter and a report out.

Every rule calls one program of scripts/, whose command line is the whole experiment.
"""

from snakemake.exceptions import WorkflowError

from tinsmith.errors import TinsmithError
from tinsmith.plan import make_plan


configfile: "config.yaml"


# Used with `--sdm apptainer` only; containers/engine.def builds it from envs/engine.txt.
container: "containers/engine.sif"


try:
    PLAN = make_plan(workflow.config_settings)
except TinsmithError as error:
    raise WorkflowError(str(error)) from None


pathvars:
    results=PLAN.results(),


include: "rules/setup.smk"
include: "rules/model.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/export.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    """The report, and every run's exported model."""
    default_target: True
    input:
        report="<results>/report.html",
        exports=PLAN.exports(),
