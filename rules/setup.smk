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
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=PLAN.setup_settings,
    shell:
        "python -m scripts.check_setup"
        " --settings {params.settings:q}"
        " --pins {input.pins:q}"
        " --setup {output.setup:q}"
        " --log {log:q}"
        " --metadata {output.metadata:q}"
