# Two commands for everybody: `make run` measures this machine, `make test` runs all tests. `make check` leaves slow tests out.
#
# Each command sets up .venv by itself. Another environment works too: make run VENV=/path/to/venv. A torch of version 2.11
# or newer that is already installed, in VENV or in the Python that .venv is made from, is used and never replaced.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH = import importlib.metadata as m, sys; v = m.version("torch").split("."); sys.exit((int(v[0]), int(v[1])) < (2, 11))
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Tests start hundreds of Python processes: each would compile all sources anew where compiled files are not kept.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run test check static lint format types layers quick slow approve benchmarks rehearsal dashboard clean

run: $(VENV)/.wattbench
	$(BIN)/bench run suites/scaling.yaml $(ARGS)

dashboard: $(VENV)/.wattbench
	$(BIN)/bench dashboard $(ARGS)

# Every part runs, also after another part failed, and the last line names all that failed. Exit code 5: no test was selected.
ALL_OF = failed=; for part in $(1); do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	test -z "$$failed" || { echo "make $@: failed:$$failed"; exit 1; }

test check static lint format types layers quick slow: $(VENV)/.wattbench-dev

test:
	@$(call ALL_OF,static quick slow)

check:
	@$(call ALL_OF,static quick)

static:
	@$(call ALL_OF,lint format types layers)

lint:
	$(BIN)/ruff check .

format:
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

layers:
	$(BIN)/lint-imports

quick:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS) || test $$? -eq 5

# Slow tests start trainings, wait for them and for meters, so three run side by side wherever.
slow:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses 3 --dist worksteal $(ARGS) || test $$? -eq 5

# Rewrites what people read in a terminal, tests/approved; read the difference before you commit it.
approve: $(VENV)/.wattbench-dev
	$(BIN)/python -m tests.approve

# The CUDA path of `bench run` on torch's CUDA build and stand-ins for the CUDA libraries; no GPU is needed. Downloads 0.7 GB.
rehearsal: $(VENV)/.wattbench-dev
	$(BIN)/python -m tests.cuda_rehearsal $(ARGS)

benchmarks: $(VENV)/.wattbench-dev
	$(BIN)/python -m tests.benchmarks.warm_start
	$(BIN)/python -m tests.benchmarks.nodes
	$(BIN)/python -m tests.benchmarks.jobs
	$(BIN)/python -m tests.benchmarks.observer
	$(BIN)/python -m tests.benchmarks.signals
	$(BIN)/python -m tests.benchmarks.loop
	$(BIN)/python -m tests.benchmarks.hooks
	$(BIN)/python -m tests.benchmarks.own_scripts
	$(BIN)/python -m tests.benchmarks.planning
	$(BIN)/python -m tests.benchmarks.frame
	$(BIN)/python -m tests.benchmarks.laws
	$(BIN)/python -m tests.benchmarks.dashboard

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "wattbench needs Python 3.11 or newer; name one: make run PYTHON=python3.12"; exit 1; }
	@if $(PYTHON) -c '$(TORCH)' 2> /dev/null; then \
		echo "using the torch of $(PYTHON)"; $(PYTHON) -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi

# constraints.txt pins the tested versions; its line for torch is left out where torch is already installed.
$(VENV)/.constraints: constraints.txt | $(BIN)/python
	@if $(BIN)/python -c '$(TORCH)' 2> /dev/null && ! test -e $@; then grep -v '^torch==' $< > $@; \
	elif test -e $@ && ! grep -q '^torch==' $@; then grep -v '^torch==' $< > $@; \
	else cp $< $@; fi

$(VENV)/.wattbench: pyproject.toml $(VENV)/.constraints
	@echo "installing into $(VENV) ..."
	$(PIP) --editable . --constraint $(VENV)/.constraints
	@touch $@

$(VENV)/.wattbench-dev: $(VENV)/.wattbench
	$(PIP) --editable '.[dev]' --constraint $(VENV)/.constraints
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
