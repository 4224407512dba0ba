PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow smoke lint format clean

demo: $(VENV)/.ready
	$(BIN)/python -m experiments.01_digits.run

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2

# The long comparisons with simulations that `make test` leaves out.
test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 -m slow

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

clean:
	rm -rf $(VENV) results
