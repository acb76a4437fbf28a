# make demo | test | lint | docs | measures: each makes its own environment in .venv when that is missing or out of date.
# PYTHON chooses the interpreter (3.11 to 3.13).

VENV := .venv
BIN := $(VENV)/bin
MANIFEST := pyproject.toml constraints.txt
CANDIDATES := python3 python3.13 python3.12 python3.11
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	$$python -c "$(IS_SUPPORTED)" >/dev/null 2>&1 && { echo $$python; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs measures constraints clean

help:
	@echo "make demo    one prompt, three modes, side by side"
	@echo "make test    the default tests"
	@echo "make lint    ruff and mypy --strict"
	@echo "make format  ruff's formatter and safe fixes"
	@echo "make docs    write the pages that are made from the code"
	@echo "make measures  what is missing of the reports in benchmarks/; takes days"
	@echo "make clean   remove $(VENV) and caches"

demo: $(VENV)/installed
	$(BIN)/unmask demo

# Side by side, one thread each, but for the tests of the default model, which share its weights.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not model and not slow and not gpu"
	$(BIN)/python -m pytest -q -m "model and not slow and not gpu"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-test
	$(BIN)/python docs/make_cli_page.py
	$(BIN)/python docs/make_config_page.py
	$(BIN)/python docs/make_published_page.py
	$(BIN)/python docs/make_serving_page.py
	$(BIN)/python docs/make_zero_shot_tables.py

# The reports on the default model, shortest first, each only where it is missing: delete one to have it measured again.
# Ctrl-C and make measures again go on at the report that was being made. Reports on models that a script trains first
# (processes, markov, few_steps, sudoku) are not among them.
REPORTS := exact allocator canvas forward_profile roofline speculation latency throughput quantization harness_agreement \
	acceptance json_schemas replica_death serving_load soak speed-of-light speed-of-light-32 frontier frontier-sampled \
	zero_shot
MEASURE := $(BIN)/python benchmarks
COMMAND_roofline := $(MEASURE)/measures.py roofline
COMMAND_speculation := $(MEASURE)/speculation.py --prompts 1 --max-tokens 64
COMMAND_latency := $(BIN)/unmask bench latency --max-tokens 256 --rounds 2 --modes ar,speculative,auto --out benchmarks/latency.json
COMMAND_throughput := $(BIN)/unmask bench throughput --max-tokens 48 --rounds 2 --out benchmarks/throughput.json
COMMAND_acceptance := $(MEASURE)/acceptance.py --prompts 3
COMMAND_serving_load := $(MEASURE)/serving_load.py --clients 200 --minutes 10 --out benchmarks/serving_load.json
COMMAND_soak := $(MEASURE)/soak.py --minutes 60 --share 0.4
COMMAND_speed-of-light := $(MEASURE)/measures.py sol
COMMAND_speed-of-light-32 := $(MEASURE)/measures.py sol-32
COMMAND_frontier := $(MEASURE)/measures.py frontier
COMMAND_frontier-sampled := $(MEASURE)/measures.py sampled

measures: $(VENV)/installed-test,eval,harness,ray $(REPORTS:%=benchmarks/%.json)

benchmarks/%.json: | $(VENV)/installed-test,eval,harness,ray
	$(or $(COMMAND_$*),$(MEASURE)/$*.py)

# Stamps, for the package alone and with each extra of pyproject.toml: a second run installs nothing, a changed
# manifest installs again. The constraints go through the environment because they must bind the build's own tools too.
INSTALL = echo "installing into $(VENV), a few minutes the first time" && \
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -qq --disable-pip-version-check

$(VENV)/installed: $(VENV)/created $(MANIFEST)
	@$(INSTALL) -e .
	@touch $@

$(VENV)/installed-%: $(VENV)/created $(MANIFEST)
	@$(INSTALL) -e '.[$*]'
	@touch $@

$(VENV)/created:
	@$(if $(PYTHON),,echo "error: no Python 3.11 to 3.13 among: $(CANDIDATES) (install one, or say make PYTHON=/path/to/python)" >&2; exit 1)
	$(PYTHON) -m venv $(VENV)
	@touch $@

constraints: $(VENV)/installed-dev
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	@echo "wrote constraints.new: compare it with constraints.txt"

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
