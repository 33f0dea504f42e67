# `make demo` and `make test` work on a fresh clone with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
# Libraries that tests compare with; they ask for packages that do not work beside this torch and that nothing here uses.
ORACLES := curvlinops-for-pytorch backpack-for-pytorch einconv einops linear_operator opt_einsum unfoldNd tqdm

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types imports unit shapes docs evidence generated clean

help:  ## What can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## Make the virtual environment and install everything, pinned

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt $(ORACLES)
	touch $@

demo: setup  ## Compare four ways to learn from noisy labels on real digits, in at most two minutes
	OMP_NUM_THREADS=1 $(BIN)/torchstone compare noisy-labels --data digits --noise symmetric:0.4 \
	    --arms ce,gce,elr,sop --baseline ce --budget 2m --store .torchstone/demo.db --report .torchstone/demo.html

test: lint types imports unit shapes docs  ## All checks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: setup
	$(BIN)/basedpyright

imports: setup
	$(BIN)/lint-imports

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not nightly and not gpu"

shapes: setup  ## Tests of the tensor code once more, with every shape annotation checked at run time
	OMP_NUM_THREADS=1 TORCHSTONE_CHECK_SHAPES=1 $(BIN)/python -m pytest -q -n $(JOBS) \
	    -m "not nightly and not gpu and not untyped and not ddp and not study" \
	    tests/noise tests/dynamics tests/models tests/training tests/data

docs: setup
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

evidence: setup  ## Run a study at bench scale and store its evidence: make evidence SLUG=sop
	OMP_NUM_THREADS=1 $(BIN)/python tools/evidence.py $(SLUG)
	$(MAKE) generated

generated: setup  ## Write the parts of README.md and docs that are made from catalogue and evidence
	$(BIN)/python tools/generated.py

clean:
	rm -rf $(VENV) .torchstone docs/_build .pytest_cache .ruff_cache
