rule inspect_stage:
    """Evaluate a stage, or the base, by a task of Inspect AI (tinsmith/inspection/)."""
    input:
        model=PLAN.model,
        heldout=PLAN.heldout_file,
        checkpoint=PLAN.evaluated_checkpoint,
        files=PLAN.inspect.files,
        pins="envs/inspect.txt",
        environment=ancient(".venvs/inspect/stamp"),
        setup=ancient("<results>/setup/setup.json"),
    output:
        result="<results>/{run}/{stage}/inspect/{evaluation}/inspect.json",
        samples="<results>/{run}/{stage}/inspect/{evaluation}/log.json",
        metadata="<results>/{run}/{stage}/inspect/{evaluation}/run_metadata.json",
    log:
        "logs/{run}/{stage}/inspect/{evaluation}.log",
    benchmark:
        "logs/{run}/{stage}/inspect/{evaluation}.tsv"
    wildcard_constraints:
        run=PLAN.run_pattern(),
        stage=PLAN.evaluated_pattern(),
        evaluation=PLAN.inspect.pattern(),
    threads: PLAN.request("evaluate_stage").threads
    resources:
        mem_mb=PLAN.request("evaluate_stage").mem_mb,
        runtime=PLAN.request("evaluate_stage").runtime,
        gpu=PLAN.request("evaluate_stage").gpus,
        gpu_model=PLAN.request("evaluate_stage").gpu_model,
        url=PLAN.url,
    params:
        settings=PLAN.inspect.settings,
    shell:
        "python -m scripts.inspect_stage"
        " --settings {params.settings:q}"
        " --threads {threads}"
        " --gpus {resources.gpu}"
        " --url {resources.url:q}"
        " --model {input.model:q}"
        " --heldout {input.heldout:q}"
        " --checkpoint {input.checkpoint:q}"
        " --files {input.files:q}"
        " --pins {input.pins:q}"
        " --result {output.result:q}"
        " --samples {output.samples:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
