# Everything a newcomer types. `make demo` and `make test` need only Python 3.11+, make and a network.
# PYTHON chooses the interpreter, TORCH the build of torch: see "CPU or CUDA" in README.md.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo showcase test ui check clean

help:
	@echo "make demo      the whole graph on the default sources: raw pages to evaluated models"
	@echo "make showcase  an example of every kind of task on open models, without a corpus"
	@echo "make ui        Dagster on http://127.0.0.1:3000 and MLflow on http://127.0.0.1:5000; Ctrl-C stops both"
	@echo "make test      the whole test suite"
	@echo "make check     format, lint, types and tests"
	@echo "make clean     removes the environment and caches, never data/"

demo: $(INSTALLED)
	@$(BIN)/gristmill demo

showcase: $(INSTALLED)
	@$(BIN)/gristmill showcase

test: $(INSTALLED)
	@$(PYTEST)

ui: $(INSTALLED)
	@exec $(BIN)/gristmill ui

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(PYTEST)

install: $(INSTALLED)

# torch goes first and by itself, so that the build chosen by TORCH stays; then everything else, at exact versions.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "gristmill needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make demo PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making the environment in $(VENV)"; $(PYTHON) -m venv $(VENV); } || { \
		rm -rf $(VENV); echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@sed '/^torch==/d' constraints.txt > $(VENV)/constraints.txt
	@echo "Installing $(TORCH) (once; a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(TORCH) -c $(VENV)/constraints.txt
	@echo "Installing Dagster, MLflow and the rest (once; two or three minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e ".[test,check]" -c $(VENV)/constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find model pipeline tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
