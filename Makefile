# make run    starts the proxy (with the demo backend where nothing is configured)
# make test   runs the tests
# make check  runs what CI runs: tests, linter, formatter, types
# make bench  measures (needs Debian's nginx and wrk); make soak runs it for two minutes, with faults

PYTHON ?= python3
BIN := .venv/bin
# Nothing outside this folder is written, pip's cache and Python's bytecode included.
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test check bench soak format clean

run: .venv/run.stamp
	@exec $(BIN)/python -m demo.run

test: .venv/dev.stamp
	@$(BIN)/python -m pytest

check: .venv/dev.stamp test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: .venv/run.stamp
	@$(BIN)/python -m benchmarks.run

soak: .venv/dev.stamp
	@$(BIN)/python -m benchmarks.soak

format: .venv/dev.stamp
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

.venv/dev.stamp: requirements.txt requirements-dev.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@ .venv/run.stamp
