# Two commands on a fresh machine: `make quickstart` and `make test`. Each makes .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.PHONY: quickstart test test-slow test-nodes lint bench sbom setup clean

setup: $(READY)

$(READY): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt setuptools torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt --editable '.[dev]'
	touch $(READY)

quickstart: $(READY)
	$(BIN)/villa quickstart configs/quickstart.yaml

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow --timeout 1500

test-nodes: $(READY)
	$(BIN)/python -m pytest -s -m nodes tests/faults --timeout 900

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.docmnist_generator
	if [ -d runs/quickstart/train/pairs ]; then $(BIN)/python -m benchmarks.sidecar_size runs/quickstart; fi

sbom: $(READY)
	$(BIN)/python -m cluster.sbom >sbom.json

clean:
	rm -rf $(VENV) build *.egg-info
