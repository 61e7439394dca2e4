rule gh200_venv:
    """A venv over the system's CUDA torch (scripts/gh200_setup_local_tinker.sh, docs/gh200.md).

    TINSMITH_SYSTEM_PYTHON, TINSMITH_PYTHON and TINSMITH_TORCH_INDEX say what it must be told.
    """
    input:
        pins="envs/engine.txt",
    output:
        torch=".venvs/gh200/torch.json",
    log:
        "logs/gh200_venv.log",
    benchmark:
        "logs/gh200_venv.tsv"
    container:
        PLAN.container.outside
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
        gpus=1,
    shell:
        "scripts/gh200_setup_local_tinker.sh > {log:q} 2>&1"
