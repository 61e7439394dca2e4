rule export_run:
    """Write the last stage's PEFT adapter and merged model, and load both again (tinsmith/export.py)."""
    input:
        model=PLAN.model,
        heldout=PLAN.heldout_file,
        checkpoint=PLAN.last_checkpoint,
        weights=PLAN.last_weights,
        records=PLAN.run_records,
        data=PLAN.data_record,
    output:
        adapter=directory("<results>/{run}/export/adapter"),
        merged=directory("<results>/{run}/export/merged"),
        check="<results>/{run}/export/check.json",
        metadata="<results>/{run}/export/run_metadata.json",
    log:
        "logs/{run}/export.log",
    benchmark:
        "logs/{run}/export.tsv"
    wildcard_constraints:
        run=PLAN.run_pattern(),
    threads: PLAN.request("export_run").threads
    resources:
        mem_mb=PLAN.request("export_run").mem_mb,
        runtime=PLAN.request("export_run").runtime,
        gpu=PLAN.request("export_run").gpus,
        gpu_model=PLAN.request("export_run").gpu_model,
        url=PLAN.url,
    params:
        settings=PLAN.export_settings,
    shell:
        "python -m scripts.export"
        " --settings {params.settings:q}"
        " --threads {threads}"
        " --gpus {resources.gpu}"
        " --url {resources.url:q}"
        " --model {input.model:q}"
        " --heldout {input.heldout:q}"
        " --checkpoint {input.checkpoint:q}"
        " --weights {input.weights:q}"
        " --records {input.records:q} {input.data:q}"
        " --adapter {output.adapter:q}"
        " --merged {output.merged:q}"
        " --check {output.check:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
