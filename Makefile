# Two commands for everyone: `make quickstart` (the main job) and `make test` (ruff, pyright, pytest).
# `make check-slow` runs the recipes and the benchmark against their bars and opens a report in Chromium: hours, resumable.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check-slow
quickstart: .venv/installed
	$(BIN)/icrl run quickstart

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2

check-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install -q -e . -c constraints.txt
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	touch $@
