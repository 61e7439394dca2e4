rule check_setup:
    """Refuse what would only fail later: missing packages, an unused GPU (tinsmith/setup.py)."""
    input:
        pins="envs/engine.txt",
        image=PLAN.container.used_image,
    output:
        setup="<results>/setup/setup.json",
        metadata="<results>/setup/run_metadata.json",
    log:
        "logs/setup/check_setup.log",
    benchmark:
        "logs/setup/check_setup.tsv"
    threads: PLAN.request("check_setup").threads
    resources:
        mem_mb=PLAN.request("check_setup").mem_mb,
        runtime=PLAN.request("check_setup").runtime,
        gpu=PLAN.request("check_setup").gpus,
        gpu_model=PLAN.request("check_setup").gpu_model,
        url=PLAN.urls,
    params:
        settings=PLAN.setup_settings,
    shell:
        "python -m scripts.check_setup"
        " --settings {params.settings:q}"
        " --gpus {resources.gpu}"
        " --url {resources.url}"
        " --pins {input.pins:q}"
        " --setup {output.setup:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"


rule make_environment:
    """The environment of the recipes or of Inspect AI, as `make` makes it; made once."""
    input:
        pins=ancient("envs/{environment}.txt"),
    output:
        stamp=".venvs/{environment}/stamp",
    log:
        "logs/make_{environment}.log",
    benchmark:
        "logs/make_{environment}.tsv"
    wildcard_constraints:
        environment="cookbook|inspect",
    localrule: True
    container:
        PLAN.container.outside
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "python -m venv .venvs/{wildcards.environment} > {log:q} 2>&1"
        " && envs/install.sh .venvs/{wildcards.environment}/bin/python {input.pins:q} >> {log:q} 2>&1"
        " && touch {output.stamp:q}"
