"""Small real tasks: digits, a network of 0.4 M parameters, 64 bits; every stage shared through one cache."""

from __future__ import annotations

import os

# Before torch is imported: workers that spin on each other's cores are ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from bench import run, spec
from bench.usage import options

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "model=timm",
    "model.name=test_resnet",
    "train.epochs=6",
    "train.lr=0.01",
    "device=cpu",
    "data.test_limit=180",
)
# Small strengths for whatever option an attack may have: a new attack is covered without an edit here.
SMALL = {
    "epochs": "1",
    "ratios": "[0.3,0.9]",
    "bits": "[8,2]",
    "factors": "[1,10]",
    "lrs": "[0.003]",
    "steps": "[15]",
    "tries": "[1,20]",
    "snapshots": "[1]",
    "fractions": "[0.5,1.0]",
    "sigmas": "[0.1,1.0]",
    "strengths": "[0.5]",
    "n_bits": "64",
    "k": "128",
}
METHODS, ATTACKS = options("method"), options("attack")
ON_PICTURES = ("surrogate", "postprocess", "residual")  # attacks that need a network which gives some


def config(*overrides: str) -> DictConfig:
    """A composed configuration, as the command line would make it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides))


# Methods that mark any network; one that marks pictures is tried where there are some (tests/test_boxfree.py).
WHITE_BOX = [m for m in METHODS if spec.target(config(f"method={m}").method, "method").access == "weights"]


def tiny(results: Path, method: str, attack: str, *more: str) -> DictConfig:
    """A small experiment of any method and attack that conf/ offers."""
    names = [f"method={method}", f"attack={attack}"]
    cfg = config(*names)
    small = [f"{g}.{k}={v}" for g in ("method", "attack") for k, v in SMALL.items() if k in cfg[g]]
    return config(*names, *TINY, *small, f"results_dir={results}", *more)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results folder for all workers of the session: host and marks are trained once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "results"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def marked(results: Path):
    """prepare() and the mark of a method, from the session's cache."""

    def make(method: str, attack: str = "none", *more: str):
        x = run.prepare(tiny(results, method, attack, *more))
        entry = run.mark(x)
        from bench.keys import load_key

        return x, run.load_weights(run.skeleton(x), entry.path), load_key(entry.path / "key.safetensors")

    return make


def command(*words: str, cwd: Path | None = None, module: str = "bench", **env: str) -> subprocess.CompletedProcess:
    """`python -m bench ...` in a subprocess."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
