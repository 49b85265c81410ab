# `make run` and `make test` do all the set-up: a virtual environment in .venv with what they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint docs engines benchmark clean

run: .venv/run
	$(BIN)/fedsim

test: .venv/dev
	$(BIN)/python -m pytest -n auto

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --config-file docs/site/mkdocs.yml

engines: .venv/dev
	$(BIN)/python -m pytest -m engine

benchmark: .venv/dev
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("fedsim needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; use make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/run
