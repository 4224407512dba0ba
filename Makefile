PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# A file's tests share compiled programs, so they stay together; the longest files start first (tests/conftest.py).
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-lowest fuzz bench smoke lint format clean

demo: $(VENV)/.ready
	$(BIN)/python -m experiments.01_digits.run

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(TWO)

# The long comparisons with simulations that `make test` leaves out.
test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest $(TWO) -m slow

# The tests with the oldest packages that pyproject.toml allows, which may find one another deprecated.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest $(TWO) -W ignore::DeprecationWarning

# Random problems against independent routes, for so many minutes; goes on with what is in results/fuzz.jsonl.
MINUTES ?= 10
fuzz: $(VENV)/.ready
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES)

# Program sizes, compilation, times and memory against the stored ones.
bench: $(VENV)/.ready
	$(BIN)/python -m experiments.benchmarks.guard

# Every experiment at a toy size; results go to results/*_smoke.
smoke: $(VENV)/.ready
	set -e; for run in experiments/[0-9]*/run.py; do module=$$(echo $${run%.py} | tr / .); echo $$module; $(BIN)/python -m $$module --smoke; done

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: $(VENV)/.ready
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[experiments]" --group dev
	touch $@

$(LOWEST)/.ready: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e ".[experiments]" --group dev
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .pytest_cache results
