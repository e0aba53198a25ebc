# Everything a newcomer needs: `make demo`, `make test`. Each target makes its own .venv when it is missing.

SHELL := /bin/sh
FIND_PYTHON := for name in python3.12 python3.13 python3.11 python3.14 python3; do \
	if command -v $$name >/dev/null 2>&1 && $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; \
	then echo $$name; break; fi; done
BIN := .venv/bin
OPENBLAS := $(firstword $(wildcard /usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0))
PICTURE := mlx_paligemma/demo/shapes.png

.PHONY: help demo test check consumers load counters bench accuracy acceptance vocabulary train-demo real-size clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

demo: .venv/run-ready ## caption, answer, locate and segment in a picture, with the bundled checkpoint
	@mkdir -p demo_out
	@ask() { echo "\$$ mlx-paligemma generate $(PICTURE) -p \"$$1\""; $(BIN)/mlx-paligemma generate $(PICTURE) -p "$$1"; echo; }; \
	ask "caption en" && ask "answer en how many shapes are there?" && ask "answer en what color is the star?" && ask "detect star ; circle"
	@echo "\$$ mlx-paligemma generate $(PICTURE) -p \"segment heart\" --json -o demo_out/shapes.png"
	@$(BIN)/mlx-paligemma generate $(PICTURE) -p "segment heart" --json -o demo_out/shapes.png

test: .venv/dev-ready ## run the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: .venv/dev-ready .venv-bench/mlx-vlm/ready .venv-bench/transformers/ready ## ours against mlx-vlm and transformers, in turn
	$(BIN)/python benchmarks/compare.py $(addprefix --openblas ,$(OPENBLAS)) --output benchmarks/results/comparison-$$(date +%Y-%m-%d)-$$(uname -m).json

.venv-bench/%/ready: benchmarks/requirements-%.txt
	$$($(FIND_PYTHON)) -m venv .venv-bench/$*
	.venv-bench/$*/bin/pip install --quiet -r $<
	@touch $@

consumers: .venv/dev-ready .venv-bench/mlx-vlm/ready ## mlx-vlm and transformers read what convert writes, and give the same logits
	$(BIN)/python benchmarks/consumers.py

load: .venv/dev-ready ## 64 clients for a minute against the server, every answer checked; rows decoded together against one
	$(BIN)/python benchmarks/serve_load.py $(addprefix --openblas ,$(OPENBLAS))
	LD_PRELOAD=$(OPENBLAS) $(BIN)/python benchmarks/serve_rows.py

counters: .venv/dev-ready ## what a token and a prefill cost at full size, counted without computing
	$(BIN)/python benchmarks/tracer.py

check: .venv/dev-ready ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

accuracy: .venv/dev-ready ## the demo checkpoint's accuracy on 300 fresh scenes, in both backends
	$(BIN)/python -m mlx_paligemma.demo.accuracy --scenes 300 --backend mlx
	$(BIN)/python -m mlx_paligemma.demo.accuracy --scenes 300 --backend torch

acceptance: .venv/dev-ready ## batches, scores, grammar, masks and memory over hundreds of answers
	$(BIN)/python -m pytest tests/test_acceptance.py tests/test_grammar.py tests/test_locations.py --full -s

vocabulary: .venv/dev-ready ## build the real vocabulary (needs npm); then `make test` checks it too
	$(BIN)/python scripts/build_vocabulary.py

train-demo: .venv/dev-ready ## train the demo checkpoint from its seed, or go on with it (hours)
	cd scripts && OMP_WAIT_POLICY=PASSIVE ../$(BIN)/python train_demo.py --runs ../runs/demo --out ../mlx_paligemma/demo/checkpoint

real-size: .venv/dev-ready ## load and run random checkpoints of the true sizes in both backends (24 GB)
	$(BIN)/python benchmarks/real_size.py

clean: ## remove .venv and everything that was made
	rm -rf .venv .venv-bench demo_out .pytest_cache .mypy_cache .ruff_cache

.venv/run-ready: pyproject.toml constraints.txt | .venv/made
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/dev-ready: pyproject.toml constraints.txt | .venv/made
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ .venv/run-ready

.venv/made:
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then echo "Python 3.11 to 3.14 is needed: brew install python@3.12, apt install python3, or https://www.python.org" >&2; exit 1; fi; \
	$$python -m venv .venv && touch $@
