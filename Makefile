# `PYTHON=python3 make gpu` uses that Python as it is, without a virtual environment or network.
GIVEN_PYTHON := $(PYTHON)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay together: they share what they have compiled.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo gpu test test-all lint clean
.DELETE_ON_ERROR:

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,offline]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.demo

gpu: $(if $(GIVEN_PYTHON),,$(VENV)/.installed)
	$(or $(GIVEN_PYTHON),$(BIN)/python) -m experiments.gpu

test: $(VENV)/.installed
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed
	$(PYTEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

clean:
	rm -rf $(VENV) results/demo
