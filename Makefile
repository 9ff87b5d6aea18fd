# Everything runs inside .venv; `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CONFIG ?= configs/local.yaml
ARGS ?=
BENCH ?= fused_loss
# One rank per GPU; two CPU ranks where there is none.
NUM_GPUS ?= $(shell gpus=$$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true); echo $$((gpus > 0 ? gpus : 2)))
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

INSTALLED := .venv/.installed
ENV := source launch/env.sh
PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet

$(INSTALLED): requirements.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "destruct: no Python >= 3.11 on PATH; name one: make setup PYTHON=/path/to/python3" >&2; exit 3; }
	@echo "installing into .venv: about a minute and 1.6 GB, several times that with CUDA"
	$(PYTHON) -m venv --prompt destruct .venv
	$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$$(grep '^torch==' requirements.txt)"
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: $(INSTALLED)  ## build .venv from requirements.txt (TORCH_INDEX_URL=... takes torch from there)
	@echo "$(ENV)"

.PHONY: train
train: $(INSTALLED)  ## train: CONFIG=configs/local.yaml NUM_GPUS=2 ARGS="ppo.clip_range=0.1"
	$(ENV) && deepspeed --num_gpus $(NUM_GPUS) -m destruct.train --config $(CONFIG) $(ARGS)

.PHONY: check
check: $(INSTALLED)  ## what every commit passes: format, lint, types, layers and sizes, fast tests
	$(ENV) && ruff format --check . && ruff check . && mypy
	$(ENV) && OMP_NUM_THREADS=1 pytest -q -n 2 -m "not gpu and not multi_gpu and not slow and not distributed"

.PHONY: test
test: $(INSTALLED)  ## the whole suite; tests of absent hardware are skipped with the reason
	$(ENV) && OMP_NUM_THREADS=1 pytest -ra -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: faults
faults: $(INSTALLED)  ## the fault campaign, for hours: ARGS="--kills 200 --only damage"; goes on where it was interrupted
	$(ENV) && OMP_NUM_THREADS=1 python -m tests.faults.campaign $(ARGS)

.PHONY: slurm-test
slurm-test: $(INSTALLED)  ## the batch scripts on a Slurm of two nodes on this machine: limits, requeues, lost nodes; 20 minutes
	@$(ENV) && python -m tests.slurm.cluster
	$(ENV) && SLURM_LIVES=5 OMP_NUM_THREADS=1 pytest -v --durations=0 --durations-min=1 tests/slurm $(ARGS)

.PHONY: golden
golden: $(INSTALLED)  ## write tests/golden/figures.jsonl anew; say why under "Numerics" in CHANGELOG.md
	$(ENV) && PYTHONPATH=. python tests/golden/test_golden.py

.PHONY: bench
bench: $(INSTALLED)  ## measure: BENCH=fused_loss, ppo_iteration, loader or curriculum ARGS="--rows 8192"; adds to bench/results.csv
	$(PIP) --no-deps -r bench/requirements.txt
	$(ENV) && python -m bench.$(BENCH) $(if $(filter $(BENCH),fused_loss ppo_iteration loader),--append) $(ARGS)

.PHONY: bench-compare
bench-compare: $(INSTALLED)  ## what has become slower by 10% or larger by 2% in bench/results.csv; fails if anything has
	$(ENV) && python -m bench.compare $(ARGS)

.PHONY: profile
profile: $(INSTALLED)  ## where an update's time goes, by phase, and a trace: CONFIG=... NUM_GPUS=2 ARGS="key.sub=value"
	$(ENV) && PYTHONPATH=. deepspeed --num_gpus $(NUM_GPUS) -m bench.profile_update --config $(CONFIG) $(ARGS)

.PHONY: docs
docs: $(INSTALLED)  ## write the generated pages of docs/ and configs/schema.json from the code
	$(ENV) && python docs/generate.py

.PHONY: docs-full
docs-full: $(INSTALLED)  ## run every command of the docs that this machine can, into docs/outputs.md: ARGS="docs/tutorial.md"
	$(ENV) && PYTHONPATH=. python -m tests.docs_commands.full $(ARGS)

.PHONY: format
format: $(INSTALLED)  ## put the code into the one format
	$(ENV) && ruff check --fix . && ruff format .

.PHONY: tensorboard
tensorboard: $(INSTALLED)  ## curves of all runs
	$(ENV) && tensorboard --logdir runs

.PHONY: clean
clean:  ## remove caches; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile
