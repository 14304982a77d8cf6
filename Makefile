# Two commands for everybody: `make run` (measure this machine) and `make test`. `make check` is the quick part of the tests.
#
# Each sets itself up in .venv. An environment of your own works too: make run VENV=/path/to/venv. A torch that is already
# there (any build from 2.11 on), in it or in the Python that .venv is made from, is used and never replaced.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH = import importlib.metadata as m, sys; v = m.version("torch").split("."); sys.exit((int(v[0]), int(v[1])) < (2, 11))
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test check benchmarks dashboard clean

run: $(VENV)/.wattbench
	$(BIN)/bench run suites/scaling.yaml $(ARGS)

dashboard: $(VENV)/.wattbench
	$(BIN)/bench dashboard $(ARGS)

# The slow tests start trainings, and so run one after the other. Exit code 5: no test of this kind was asked for.
test: check
	$(BIN)/python -m pytest -m slow $(ARGS) || test $$? -eq 5

check: $(VENV)/.wattbench-dev static
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 $(ARGS) || test $$? -eq 5

.PHONY: static
static: $(VENV)/.wattbench-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmarks: $(VENV)/.wattbench-dev
	$(BIN)/python -m tests.benchmarks.warm_start
	$(BIN)/python -m tests.benchmarks.observer
	$(BIN)/python -m tests.benchmarks.loop
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

# What is tested is pinned by constraints.txt; the line of torch is left out where a torch is there already.
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
	rm -rf .venv .venv-peers .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
