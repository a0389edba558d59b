# `make demo` shows the whole thing at work; `make test` checks it. Each makes .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test test-slow lint ops clean

demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py --output_dir $(DEMO)

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The operator of Deformable DETR as an installed package; without it, it is compiled once at first use.
ops: $(VENV)/.demo
	$(BIN)/pip install --no-build-isolation --no-deps ./ops

clean:
	rm -rf $(DEMO)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements.txt requirements-demo.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -r requirements-demo.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-demo.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@
