# Everything goes through one virtual environment in .venv; `make` alone says what there is.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
CONFIG ?= backup.yaml
export S3HASHSYNC_PYTHON := $(CURDIR)/$(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help install demo test integration check lint format plan apply bench clean lock

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' $(MAKEFILE_LIST) | column -t -s:

$(STAMP): pyproject.toml requirements-dev.lock
	$(PYTHON) -c 'import sys; sys.exit("s3hashsync needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(STAMP)  ## make .venv with the program and its tools

demo: $(STAMP)  ## back up a real folder into an embedded repository, change it, restore it, compare
	$(BIN)/python tests/demo.py

test: $(STAMP)  ## the tests that need nothing but Python
	$(BIN)/python -m pytest tests -n auto --dist worksteal

integration: $(STAMP)  ## the tests against versitygw and DynamoDB Local, which it installs once, and the slow ones
	$(BIN)/python tests/install_servers.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/integration -m integration
	S3HASHSYNC_SLOW=1 $(BIN)/python -m pytest tests -m 'slow or stock_tools' -n auto --dist worksteal

check: $(STAMP)  ## format, lint, types, import rules, tests
	$(BIN)/ruff format --check .
	$(MAKE) lint
	$(MAKE) test

lint: $(STAMP)  ## ruff, mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

plan: $(STAMP)  ## s3hashsync plan, with CONFIG=backup.yaml
	$(BIN)/s3hashsync -c $(CONFIG) plan

apply: $(STAMP)  ## s3hashsync apply, with CONFIG=backup.yaml
	$(BIN)/s3hashsync -c $(CONFIG) apply

bench: $(STAMP)  ## measure beside the peers on PATH (restic, kopia, …)
	$(BIN)/python benchmarks/compare.py

lock: $(STAMP)  ## write requirements.lock and requirements-dev.lock anew
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --extra fast --extra dev --output-file requirements-dev.lock pyproject.toml
	$(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --extra fast --constraint requirements-dev.lock --output-file requirements.lock pyproject.toml

clean:  ## remove what make made here
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
