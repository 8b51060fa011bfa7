# make demo: the whole story on the embedded data. make test: everything that must hold before a change lands.
# make check: what takes under a minute of it. make format: what ruff can set right by itself.
PYTHON ?= python3
BIN := .venv/bin
# As many processes as there are cores; neighbours, which share what they made, stay together.
PYTEST := $(BIN)/pytest -n auto --dist worksteal
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-ranks check lint format docs clean gpu xla test-xla

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/zippkit demo --out runs/demo

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy zippkit towers/zippkit_towers
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

check: lint
	$(PYTEST) -m 'not slow and not ranks'

# Every composition and every way of holding it, on 1, 2 and 4 processes.
test-ranks: .venv/installed
	$(BIN)/pytest -m ranks

# The third device, in an environment of its own (6.5 GB): docs/tpu.md.
XLA ?= .venv-xla

xla: $(XLA)/installed

$(XLA)/installed: constraints-xla.txt
	$(PYTHON) -m venv $(XLA)
	$(XLA)/bin/pip install --quiet --disable-pip-version-check --no-deps -r constraints-xla.txt
	$(XLA)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-xla: $(XLA)/installed
	PJRT_DEVICE=CPU $(XLA)/bin/pytest -m xla

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/house.py

# What one GPU can show; PART=train is one part of it. GPU_PYTHON is a Python whose torch sees the GPU (benchmarks/README.md).
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	PYTHONPATH=.:towers $(GPU_PYTHON) benchmarks/gpu.py $(if $(PART),--part $(PART)) --out runs/gpu.json

# Wheel and sdist, installed where nothing of this folder is, and tried.
.PHONY: release-check
release-check:
	PYTHON=$(PYTHON) .ci/release_check.sh

clean:
	rm -rf .venv build *.egg-info
