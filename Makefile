# Two commands: `make demo` (a table and a plot) and `make test`. Both create .venv and install first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint clean

demo: .venv/installed
	$(BIN)/python -m bench method=neuralmark attack=prune
	$(BIN)/python -m bench.report

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# Minutes on real CIFAR-10 (BENCH_CIFAR10 or ../shared/data/cifar10); `-m "slow and quick"` is the half CI runs.
test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip chooses torch and torchvision together: a torch that is already there may have no matching torchvision.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch .venv/installed

clean:
	rm -rf .venv results/runs results/cache results/tables results/figures results/report.html results/sweeps results/claims.json results/tensorboard results/mlruns results/wandb
