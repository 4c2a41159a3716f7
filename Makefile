# Two commands set everything up by themselves: `make demo` (light) and `make test` (everything).
# Two folders, as each set has a FAISS of its own (faiss-cpu, faiss-gpu) and one environment cannot hold both. The demo
# runs in whichever is there, in the full one as it is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FULL   := $(VENV)/.installed-full
LIGHT  := .venv-light/.installed-light
DEMO   := $(or $(wildcard $(FULL)),$(LIGHT))

.PHONY: help setup demo test test-slow check format bench reproduce family docs lock clean

help:
	@echo "make demo       the whole job on the embedded sample, into runs/demo"
	@echo "make setup      build .venv with everything (make demo needs less: it builds .venv-light)"
	@echo "make check      formatting, lint, types"
	@echo "make test       the tests; make test-slow runs the slow ones too"
	@echo "make bench      side-by-side measurements, one JSON line each"
	@echo "make reproduce  the paper's table: says what it needs, does what can be done here, into runs/reproduce"
	@echo "make family     the systems of this family in one table, offline, of random weights, into runs/family"
	@echo "make docs       the documentation as pages to read from disk, into site"
	@echo "make lock       resolve the lock files again"

setup: $(FULL)

demo: $(filter $(LIGHT),$(DEMO))
	$(dir $(DEMO))bin/sonify demo

# Two at a time, file by file as they are found: those of few and long tests would otherwise come last. With one thread
# each: on two cores threads that wait for each other take more than twice the time.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(FULL)
	$(TESTS)

test-slow: $(FULL)
	$(TESTS) -m ""

check: $(FULL)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(FULL)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(FULL)
	$(BIN)/python -m benchmarks

reproduce: $(FULL)
	$(BIN)/python -m eval.reproduce --out runs/reproduce

family: $(FULL)
	$(BIN)/python -m eval.family --out runs/family

docs: $(FULL)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the documentation is at site/index.html"

# Universal: one file for Python 3.11 to 3.13 on every platform; no index address is written into it. The images of
# jobs/ hold parts of requirements.lock at the same versions, and two serving engines with pins of their own.
RESOLVE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header
NODES   := $(RESOLVE) --constraint requirements.lock --extra remote
FULLER  := $(foreach extra,models laion train eval publish heif tagger gpu,--extra $(extra))

lock: $(FULL)
	$(RESOLVE) --extra sample --extra cpu pyproject.toml -o requirements-demo.lock
	$(RESOLVE) --extra sample --extra dev pyproject.toml -o requirements.lock
	$(NODES) --extra cpu pyproject.toml jobs/nodes.in -o jobs/cpu.lock
	$(NODES) $(FULLER) pyproject.toml jobs/nodes.in -o jobs/gpu.lock
	$(RESOLVE) --python-version 3.11 jobs/vllm.in -o jobs/vllm.lock
	$(RESOLVE) --python-version 3.11 jobs/lmdeploy.in -o jobs/lmdeploy.lock

clean:
	rm -rf $(VENV) .venv-light .pytest_cache .ruff_cache site

# uv installs ten times faster than pip (measured: 7 s against 77 s for the light lock) and checks the same hashes.
%/bin/uv:
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8

# $(1): the environment. No other FAISS than the lock's may lie in it: an older checkout's .venv was light at first.
define install
	$(1)/bin/uv pip uninstall --quiet --python $(1)/bin/python faiss-cpu faiss-gpu
	$(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python --require-hashes -r $<
	$(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python --no-deps --editable .
	touch $@
endef

$(LIGHT): requirements-demo.lock pyproject.toml | .venv-light/bin/uv
	$(call install,.venv-light)

$(FULL): requirements.lock pyproject.toml | $(BIN)/uv
	$(call install,$(VENV))
