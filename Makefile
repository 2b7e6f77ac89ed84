# make run    starts the proxy (with the demo backend if nothing is configured)
# make test   runs the tests
# make check  runs what CI runs: tests, linter, formatter, types
# make bench  runs the benchmarks (needs Debian's nginx and wrk); make soak tests under load and faults,
#             for SOAK_SECONDS or two minutes; make bench-cluster measures several machines (needs
#             Debian's postgresql and wrk)
#
# make constraints  pins the newest versions of what the requirements need, for every install
# make release VERSION=1.1.0  commits and tags a release
#
# PYTHON=/path/to/python3.13 uses another interpreter, in a virtual environment of its own.

PYTHON ?= python3
VENV := .venv
ifneq ($(PYTHON),python3)
VENV := .venv-$(or $(shell $(PYTHON) -c "import sys; print('%d.%d.%d' % sys.version_info[:3])"),$(error $(PYTHON) does not run))
endif
BIN := $(VENV)/bin
RUNTIME := $(filter-out requirements-dev.txt,$(sort $(wildcard requirements*.txt)))
# Nothing is written outside this folder, not even pip's cache.
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test check bench bench-cluster soak format constraints release clean

run: $(VENV)/run.stamp
	@exec $(BIN)/python -m demo.start

# pytest keeps the tests as it has rewritten them, which takes 5 s in each of its processes.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest

check: $(VENV)/dev.stamp test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/dev.stamp
	@$(BIN)/python -m benchmarks.run

bench-cluster: $(VENV)/dev.stamp
	@$(BIN)/python -m benchmarks.cluster

soak: $(VENV)/dev.stamp
	@$(BIN)/python -m benchmarks.soak

format: $(VENV)/dev.stamp
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Installs uv by itself, since dev.stamp needs constraints that fit the requirements.
constraints: | $(BIN)/python
	@$(BIN)/python -m pip install --quiet uv==0.13.9
	@$(BIN)/uv pip compile --quiet --no-cache --upgrade --universal --python-version 3.11 --no-annotate \
	    --custom-compile-command "make constraints" --output-file constraints.txt $(RUNTIME)

release:
	@.ci/release $(VERSION)

clean:
	rm -rf .venv .venv-* .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: $(wildcard requirements*.txt) constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	@touch $@ $(VENV)/run.stamp
