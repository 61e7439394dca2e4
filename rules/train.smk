rule train_stage:
    """Train one stage from the checkpoint of the one before (tinsmith/stages/).

    `work` is no output, because Snakemake deletes the outputs of a job that fails: a killed stage
    finds its last checkpoint there and goes on. `monitors`, `checkpoints` and `trackers` are no
    parameters, because what is watched, kept and shown changes nothing that is trained.
    """
    input:
        model=PLAN.model,
        train=PLAN.train_file,
        heldout=PLAN.heldout_file,
        previous=PLAN.previous_checkpoint,
        user_code=PLAN.user_code,
        setup=ancient("<results>/setup/setup.json"),
    output:
        checkpoint="<results>/{run}/{stage}/checkpoint.json",
        info="<results>/{run}/{stage}/final_checkpoint_info.json",
        saved="<results>/{run}/{stage}/checkpoints.jsonl",
        metrics="<results>/{run}/{stage}/metrics.jsonl",
        steps=directory("<results>/{run}/{stage}/steps"),
        transcript=report(
            "<results>/{run}/{stage}/transcript.html",
            caption="captions/transcript.rst",
            category="Transcripts",
            labels={"run": "{run}", "stage": "{stage}"},
        ),
        weights=directory("<results>/{run}/{stage}/weights"),
        metadata="<results>/{run}/{stage}/run_metadata.json",
    log:
        "logs/{run}/{stage}/train.log",
    benchmark:
        "logs/{run}/{stage}/train.tsv"
    wildcard_constraints:
        run=PLAN.run_pattern(),
        stage=PLAN.stage_pattern(),
    threads: PLAN.request("train_stage").threads
    resources:
        mem_mb=PLAN.request("train_stage").mem_mb,
        runtime=PLAN.request("train_stage").runtime,
        gpu=PLAN.request("train_stage").gpus,
        gpu_model=PLAN.request("train_stage").gpu_model,
        url=PLAN.url,
        monitors=PLAN.monitors,
        checkpoints=PLAN.checkpoints,
        trackers=PLAN.trackers,
    params:
        settings=PLAN.train_settings,
        work=PLAN.work_dir,
    shell:
        "python -m scripts.train"
        " --settings {params.settings:q}"
        " --monitors {resources.monitors:q}"
        " --checkpoints {resources.checkpoints:q}"
        " --trackers {resources.trackers:q}"
        " --threads {threads}"
        " --gpus {resources.gpu}"
        " --url {resources.url:q}"
        " --model {input.model:q}"
        " --train {input.train:q}"
        " --heldout {input.heldout:q}"
        " --previous {input.previous:q}"
        " --user-code {input.user_code:q}"
        " --work {params.work:q}"
        " --checkpoint {output.checkpoint:q}"
        " --info {output.info:q}"
        " --saved {output.saved:q}"
        " --metrics {output.metrics:q}"
        " --steps {output.steps:q}"
        " --transcript {output.transcript:q}"
        " --weights {output.weights:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
