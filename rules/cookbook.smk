rule train_cookbook:
    """Run a recipe of the tinker-cookbook from the checkpoint before it (tinsmith/cookbook/).

    `work` is no output, because Snakemake deletes the outputs of a job that fails: a killed recipe
    finds its log there and goes on.
    """
    input:
        model=PLAN.model,
        previous=PLAN.previous_checkpoint,
        checkpoints=PLAN.cookbook.checkpoints,
        reads=PLAN.cookbook.reads,
        files=PLAN.cookbook.files,
        pins="envs/cookbook.txt",
        environment=ancient(".venvs/cookbook/stamp"),
        setup=ancient("<results>/setup/setup.json"),
    output:
        checkpoint="<results>/{run}/{stage}/checkpoint.json",
        info="<results>/{run}/{stage}/final_checkpoint_info.json",
        saved="<results>/{run}/{stage}/checkpoints.jsonl",
        metrics="<results>/{run}/{stage}/metrics.jsonl",
        weights=directory("<results>/{run}/{stage}/weights"),
        recipe=directory("<results>/{run}/{stage}/recipe"),
        metadata="<results>/{run}/{stage}/run_metadata.json",
    log:
        "logs/{run}/{stage}/train.log",
    benchmark:
        "logs/{run}/{stage}/train.tsv"
    wildcard_constraints:
        run=PLAN.run_pattern(),
        stage=PLAN.cookbook.pattern(),
    threads: PLAN.request("train_stage").threads
    resources:
        mem_mb=PLAN.request("train_stage").mem_mb,
        runtime=PLAN.request("train_stage").runtime,
        gpu=PLAN.request("train_stage").gpus,
        gpu_model=PLAN.request("train_stage").gpu_model,
        url=PLAN.url,
    params:
        settings=PLAN.train_settings,
        work=PLAN.work_dir,
    shell:
        "python -m scripts.train_cookbook"
        " --settings {params.settings:q}"
        " --threads {threads}"
        " --gpus {resources.gpu}"
        " --url {resources.url:q}"
        " --model {input.model:q}"
        " --previous {input.previous:q}"
        " --checkpoints {input.checkpoints:q}"
        " --reads {input.reads:q}"
        " --files {input.files:q}"
        " --pins {input.pins:q}"
        " --work {params.work:q}"
        " --checkpoint {output.checkpoint:q}"
        " --info {output.info:q}"
        " --saved {output.saved:q}"
        " --metrics {output.metrics:q}"
        " --weights {output.weights:q}"
        " --recipe {output.recipe:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
