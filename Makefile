# Two commands: `make quickstart` (the main job) and `make test` (ruff, pyright, pytest).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test
test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install -q -e . -c constraints.txt
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	touch $@
