rule evaluate_stage:
    """Sample the held-out problems with a stage's adapter, or the base (tinsmith/evaluation.py)."""
    input:
        model=PLAN.model,
        heldout=PLAN.heldout_file,
        checkpoint=PLAN.evaluated_checkpoint,
        previous=PLAN.previous_samples,
        base=PLAN.base_samples,
        user_code=PLAN.user_code,
        setup=ancient("<results>/setup/setup.json"),
    output:
        evaluation="<results>/{run}/{stage}/evaluation/evaluation.json",
        samples="<results>/{run}/{stage}/evaluation/samples.jsonl",
        metadata="<results>/{run}/{stage}/evaluation/run_metadata.json",
    log:
        "logs/{run}/{stage}/evaluate.log",
    benchmark:
        "logs/{run}/{stage}/evaluate.tsv"
    wildcard_constraints:
        run=PLAN.run_pattern(),
        stage=PLAN.evaluated_pattern(),
    threads: PLAN.request("evaluate_stage").threads
    resources:
        mem_mb=PLAN.request("evaluate_stage").mem_mb,
        runtime=PLAN.request("evaluate_stage").runtime,
        gpu=PLAN.request("evaluate_stage").gpus,
        gpu_model=PLAN.request("evaluate_stage").gpu_model,
        url=PLAN.url,
    params:
        settings=PLAN.evaluate_settings,
    shell:
        "python -m scripts.evaluate"
        " --settings {params.settings:q}"
        " --threads {threads}"
        " --gpus {resources.gpu}"
        " --url {resources.url:q}"
        " --model {input.model:q}"
        " --heldout {input.heldout:q}"
        " --checkpoint {input.checkpoint:q}"
        " --previous {input.previous:q}"
        " --base {input.base:q}"
        " --user-code {input.user_code:q}"
        " --evaluation {output.evaluation:q}"
        " --samples {output.samples:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
