rule write_report:
    """Draw what was run and what it reached as one page (tinsmith/report/)."""
    input:
        PLAN.reported_files,
    output:
        page=report(
            "<results>/report.html",
            caption="captions/report.rst",
            category="Report",
        ),
        metadata="<results>/report/run_metadata.json",
    log:
        "logs/report.log",
    benchmark:
        "logs/report.tsv"
    threads: PLAN.request("write_report").threads
    resources:
        mem_mb=PLAN.request("write_report").mem_mb,
        runtime=PLAN.request("write_report").runtime,
        gpu=PLAN.request("write_report").gpus,
        gpu_model=PLAN.request("write_report").gpu_model,
    params:
        settings=PLAN.report_settings,
    shell:
        "python -m scripts.report"
        " --settings {params.settings:q}"
        " --page {output.page:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
