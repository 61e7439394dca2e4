rule prepare_model:
    """Make the tiny model, or fetch one from the hub at its pinned commit (tinsmith/models.py)."""
    input:
        setup=ancient("<results>/setup/setup.json"),
    output:
        model=directory("models/{model}"),
        metadata="models/{model}.run_metadata.json",
    log:
        "logs/models/{model}.log",
    benchmark:
        "logs/models/{model}.tsv"
    wildcard_constraints:
        model=PLAN.model_pattern(),
    threads: PLAN.request("prepare_model").threads
    resources:
        mem_mb=PLAN.request("prepare_model").mem_mb,
        runtime=PLAN.request("prepare_model").runtime,
        gpu=PLAN.request("prepare_model").gpus,
        gpu_model=PLAN.request("prepare_model").gpu_model,
    params:
        settings=PLAN.model_settings,
        download="work/download/{model}",
    shell:
        "python -m scripts.prepare_model"
        " --settings {params.settings:q}"
        " --setup {input.setup:q}"
        " --model {output.model:q}"
        " --download {params.download:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
