rule prepare_data:
    """Generate, read or fetch the problems, and hold some out (tinsmith/data.py)."""
    input:
        source=PLAN.data_source,
        setup=ancient("<results>/setup/setup.json"),
    output:
        train="data/{data}/train.jsonl",
        heldout="data/{data}/heldout.jsonl",
        stats="data/{data}/stats.json",
        metadata="data/{data}/run_metadata.json",
    log:
        "logs/data/{data}.log",
    benchmark:
        "logs/data/{data}.tsv"
    wildcard_constraints:
        data=PLAN.data_pattern(),
    threads: PLAN.request("prepare_data").threads
    resources:
        mem_mb=PLAN.request("prepare_data").mem_mb,
        runtime=PLAN.request("prepare_data").runtime,
        gpu=PLAN.request("prepare_data").gpus,
        gpu_model=PLAN.request("prepare_data").gpu_model,
    params:
        settings=PLAN.data_settings,
    shell:
        "python -m scripts.prepare_data"
        " --settings {params.settings:q}"
        " --setup {input.setup:q}"
        " --train {output.train:q}"
        " --heldout {output.heldout:q}"
        " --stats {output.stats:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
