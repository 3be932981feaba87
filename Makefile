# Two commands do all the set-up on a fresh machine with Python 3.11: `make serve` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH := .venv/.bench

.PHONY: serve serve-fake test test-fast bench check format demo clean

serve: $(READY)  ## chat service on http://localhost:8000 over the demo checkpoints, under Ray
	RAY_USAGE_STATS_ENABLED=0 $(BIN)/retina serve  # checks the machine's size, then: serve run configs/local.yaml

serve-fake: $(READY)  ## whole graph and page in one process without Ray or torch, about a second
	$(BIN)/retina serve --in-process --config configs/fake.yaml

test: $(READY)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not cluster"
	$(BIN)/python -m pytest -m cluster

test-fast: $(READY)  ## most of those that need neither torch nor Ray, nor browsers and other programs; under a minute
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
		-m "not torch and not ray and not cluster and not browser and not node and not slow"

bench: $(BENCH)  ## short benchmarks of this machine: engine, vision, served graph beside transformers serve; about 3 minutes
	$(BIN)/python -m benchmarks.generator --batches 1,16 --positions 160 --generate-dtypes bfloat16
	$(BIN)/python -m benchmarks.vision --short
	$(BIN)/python -m benchmarks.graph --users 1,16 --scenario unique,repeat --tiles 1 --peer-dtypes float32

check: $(READY)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(READY)  ## train the demo checkpoints from nothing, one after the other; this takes hours (demo/README.md)
	$(BIN)/python demo/train.py smolvlm --out demo/checkpoints/smolvlm --seed 0
	$(BIN)/python demo/train.py qwen2_vl --out demo/checkpoints/qwen2_vl --seed 0
	$(BIN)/python demo/train.py llava --out demo/checkpoints/llava --seed 0
	$(BIN)/python demo/train.py llava_qwen2 --out demo/checkpoints/llava_qwen2 --seed 0
	$(BIN)/python demo/train.py moondream --out demo/checkpoints/moondream --seed 0 --pictures 32768

clean:
	rm -rf .venv .retina build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Retina needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv (once; torch and Ray are large, this takes a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --editable '.[dev]'
	touch $(READY)

$(BENCH): pyproject.toml $(READY)
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $(BENCH)
