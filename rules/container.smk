rule container:
    """The image that the config names, from containers/ (docs/containers.md)."""
    input:
        PLAN.container.image,


rule build_container:
    """Build an image with the versions of envs/ (tinsmith/container.py).

    On the machine where Snakemake runs, which is the one that has a network on many clusters.
    """
    input:
        definition="containers/{image}.def",
        copied=PLAN.container.copied,
    output:
        image="containers/{image}.sif",
        metadata="containers/{image}.run_metadata.json",
    log:
        "logs/containers/{image}.log",
    benchmark:
        "logs/containers/{image}.tsv"
    wildcard_constraints:
        image=PLAN.container.pattern(),
    localrule: True
    container:
        PLAN.container.outside
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        settings=PLAN.container.settings_json,
    shell:
        "python -m scripts.build_container"
        " --settings {params.settings:q}"
        " --definition {input.definition:q}"
        " --copied {input.copied:q}"
        " --image {output.image:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
