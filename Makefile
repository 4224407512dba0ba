PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow smoke lint format clean

demo: $(VENV)/.ready
	$(BIN)/python experiments/01_digits.py

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2

# The long comparisons with simulations that `make test` leaves out.
test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 -m slow

# Every experiment at a toy size; results go to results/*_smoke.
smoke: $(VENV)/.ready
	set -e; for script in experiments/[0-9]*.py experiments/absorbing_state/run.py; do echo $$script; $(BIN)/python $$script --smoke; done

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
