# Every target works from a clean clone: it makes .venv, builds the wheel in isolation, installs the
# wheel (never the source tree) and runs. Stamps make a second run start at once.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check
# One stamp per spelling of TORCH, so that another torch is another installation.
TORCH_STAMP := $(VENV)/.torch-$(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.' -)
WHEEL_STAMP := dist/.wheel
# By the shell: make itself would remember the folder as it was before the build.
WHEEL := $$(echo dist/evidens-*.whl)

# $(wildcard) keeps a missing folder from stopping make; __pycache__ and results are no sources.
SOURCES := $(shell find $(wildcard csrc kernels python bench) -type f \
	-not -path '*/__pycache__/*' -not -path 'bench/results/*' -not -name '.*')
BUILD_FILES := pyproject.toml CMakeLists.txt README.md LICENSE

.DELETE_ON_ERROR:
.PHONY: help test demo bench wheel lint clean test-gpu bench-gpu sanitize-gpu

help:
	@echo 'make test    build, install and run every test (each instruction set, one thread, Triton)'
	@echo 'make demo    build, install and run the tour; writes evidens-tour.html'
	@echo 'make bench   build, install and run the benchmarks'
	@echo 'make lint    format, lint, types, layers and stubs'
	@echo 'make test-gpu, bench-gpu, sanitize-gpu    the same on a CUDA device (GPU_PYTHON=python3: of'
	@echo '             an interpreter that has torch already; see CONTRIBUTING.md)'
	@echo 'make wheel   build the wheel into dist/'
	@echo 'make clean   remove .venv, build, dist and caches'
	@echo "Variables: PYTHON=$(PYTHON)  TORCH='$(TORCH)'  VENV=$(VENV)"

# --- environment and wheel ------------------------------------------------------------------------

$(PY):
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: whatever is installed later then finds it satisfied.
$(TORCH_STAMP): | $(PY)
	rm -f $(VENV)/.torch-*
	$(PIP) install '$(TORCH)'
	touch $@

wheel: $(WHEEL_STAMP)

$(WHEEL_STAMP): $(SOURCES) $(BUILD_FILES) | $(PY)
	rm -f dist/evidens-*.whl
	$(PIP) wheel --no-deps --wheel-dir dist .
	touch $@

$(VENV)/.wheel: $(WHEEL_STAMP) $(TORCH_STAMP)
	rm -f $(VENV)/.extra-*
	$(PIP) install --force-reinstall --no-deps $(WHEEL)
	touch $@

$(VENV)/.extra-%: $(VENV)/.wheel
	$(PIP) install '$(TORCH)' "$(WHEEL)[$*]"
	touch $@

# --- runs -----------------------------------------------------------------------------------------
# pytest is started by its own script: `python -m pytest` would put the source tree on the path.

PYTEST := $(BIN)/pytest
# Tests share the cores by processes.  Torch's threads then have to sleep while they wait: spinning,
# each keeps the core from the other process, and the whole takes five times as long.
EACH_CORE := OMP_WAIT_POLICY=passive $(PYTEST) -n auto -p no:benchmark
ONE_THREAD := EVIDENS_TEST_THREADS=1 OMP_NUM_THREADS=1 $(EACH_CORE)
# What does not run the compiled kernels is the same at every level and for every thread count.
ANYWHERE := $(foreach name,reference peers errors torch transforms,--ignore-glob='*_$(name).py')
LOWER_LEVELS := $(PY) -c 'import evidens; print(*evidens.info()["isa"]["available"][:-1])'
HAS_TRITON := $(PY) -c 'import triton' 2>/dev/null

test: $(VENV)/.extra-test
	$(EACH_CORE) --ignore=tests/kernels tests
	set -e; for level in $$($(LOWER_LEVELS)); do \
		echo "== tests/ops with EVIDENS_ISA=$$level"; \
		EVIDENS_ISA=$$level $(ONE_THREAD) $(ANYWHERE) tests/ops; \
	done
	@echo '== tests/ops with one thread'
	$(ONE_THREAD) $(ANYWHERE) tests/ops
	@if $(HAS_TRITON); then \
		echo '== tests/kernels in the Triton interpreter'; \
		TRITON_INTERPRET=1 $(ONE_THREAD) --dist loadfile tests/kernels; \
	else \
		echo '== tests/kernels skipped: triton is not installed (it has no package for this system)'; \
	fi
	@echo '== every benchmark once, at smoke size: equality with the baselines'
	$(PYTEST) --benchmark-disable bench

demo: $(VENV)/.extra-plot
	$(PY) -m evidens tour

bench: $(VENV)/.extra-bench
	$(PY) -m evidens bench

# The interpreter that holds torch with CUDA.  Another one than that of .venv is taken as it is: what
# it lacks of evidens is built beside the tree, without the network.
GPU_PYTHON ?= $(PY)
GPU_NEEDS := $(if $(filter $(PY),$(GPU_PYTHON)),$(VENV)/.extra-test $(VENV)/.extra-bench)

test-gpu sanitize-gpu: $(GPU_NEEDS)
	PYTHON='$(GPU_PYTHON)' scripts/gpu.sh $(@:-gpu=)

bench-gpu: $(GPU_NEEDS)
	PYTHON='$(GPU_PYTHON)' scripts/gpu.sh bench --device cuda --json bench/results

lint: $(VENV)/.extra-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.h' -o -name '*.cpp')
	$(BIN)/mypy --python-executable $(PY)
	$(BIN)/lint-imports
	$(PY) -m mypy.stubtest --allowlist scripts/stubtest_allowlist.txt evidens._C

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache \
		.import_linter_cache .benchmarks evidens-tour.html
