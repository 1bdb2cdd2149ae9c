"""What tests of several folders ask: small configurations, commands in a subprocess, marked networks and pictures."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from bench import spec
from bench.check.properties import facts  # noqa: F401 (many tests ask for it here)
from bench.check.small import SMALL, TINY, small  # noqa: F401
from bench.cli.usage import options
from bench.models import weights
from bench.models.anatomy import Anatomy
from bench.store.cache import Cache
from bench.tasks.restoration import RestorationTask
from bench.tasks.segmentation import SegmentationTask
from bench.train import Fit
from bench.types import Victim
from methods.neuralmark import Neuralmark
from methods.uchida import Uchida

ROOT = Path(__file__).resolve().parents[1]
CIFAR10 = Path(os.environ.get("BENCH_CIFAR10", ROOT.parent / "shared" / "data" / "cifar10"))
REAL = ("data=parquet", f"data.path={CIFAR10}", "device=cpu")
METHODS, ATTACKS = options("method"), options("attack")
CPU = torch.device("cpu")
ON_PICTURES = ("surrogate", "postprocess", "residual")  # attacks that need a network which gives some
COMPLETE = (pytest.mark.slow, pytest.mark.quick)  # what the default run leaves to CI
FIRST = ("frequency", "neuralmark", "none", "uchida", "watermas")  # tried on every task in the default run, or in CI


def marks_of(method: str, also: Collection[str] = ()) -> tuple:
    """Of a test on a task beside the first: Uchida's in the default run, `also` in CI, the rest in the slow tests."""
    return () if method == "uchida" else COMPLETE if method in also else (pytest.mark.slow,)


def first(methods: Collection[str]) -> list:
    """Methods as a test's parameters: all but FIRST are for the slow tests."""
    return [pytest.param(m, marks=() if m in FIRST else pytest.mark.slow) for m in methods]


def config(*overrides: str) -> DictConfig:
    """A composed configuration, as the command line would make it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides))


ACCESS = {m: spec.target(config(f"method={m}").method, "method").access for m in METHODS}
OF_PICTURES = ("boxfree",)  # a method that marks pictures is tried where there are some (methods/test_boxfree_mark.py)
# Methods that mark networks of the default task; those that mark networks of any task; those that read weights.
TRIED = [m for m in METHODS if m not in OF_PICTURES]
MARKING = [m for m in TRIED if m != "none"]
WHITE_BOX = [m for m in METHODS if ACCESS[m] == "weights"]
BY_POSITION = [m for m in MARKING if ACCESS[m] != "outputs"]


def tiny(results: Path, method: str, attack: str, *more: str) -> DictConfig:
    """A small experiment of any method and attack that conf/ offers."""
    names = [f"method={method}", f"attack={attack}"]
    other = any(word.startswith("model=") for word in more)
    base = [word for word in TINY if not (other and word.startswith("model"))]
    return config(*names, *base, *small(config(*names)), f"results_dir={results}", *more)


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


def python(*args: str, **env: str) -> subprocess.CompletedProcess:
    """The interpreter in a subprocess, at the root."""
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=ROOT, env=os.environ | env)


# Attacks, one by one


def victim(x, model, key, **more) -> Victim:
    return Victim(model, x.method, x.task.view("attacker"), **more)


def fit(x) -> Fit:
    return Fit(x.train, 3, may_diverge=True)


def build_attack(name: str, *overrides: str):
    return spec.build(config(f"attack={name}", *overrides).attack, "attack")


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: w.detach().clone() for k, w in weights.weights(model).items()}


def snapshots(x, model, key, where=None):
    """(knob, strength, copy of the model, claim) of every snapshot."""
    task = x.task.view("attacker" if x.attack.data == "attacker" else "outsider")
    victim = Victim(model, x.method, task, fresh=lambda seed: x.task.build(x.model, seed), where=where, key=key)
    fit = Fit(x.train, 3, may_diverge=True)
    for s in x.attack.run(victim, np.random.default_rng(0), fit):
        yield s.knob, s.strength, copy.deepcopy(s.model)


def changed(before, after) -> dict[str, float]:
    """Share of each tensor's entries that differ."""
    old, new = before.state_dict(), after.state_dict()
    return {n: float((old[n] != new[n]).float().mean()) for n in old if n in new and old[n].shape == new[n].shape}


# Methods without a harness


UCHIDA = Uchida(n_bits=32, projection="random", lambda_=0.01, situation="scratch", layer=None, binding="none")
NEURALMARK = Neuralmark(
    n_bits=32, k=16, rounds=2, pool=True, binding=True, lambda_=1.0, situation="scratch", layer=None
)


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.ModuleDict({"stage1": nn.Conv2d(3, 16, 3), "stage2": nn.Conv2d(16, 24, 3), "head": nn.Linear(24, 10)})
    return headed(made)


def headed(made: nn.Module) -> nn.Module:
    """A network by hand, with what a builder would have noted of it."""
    made.anatomy = Anatomy(heads=frozenset({"head"}))
    return made


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def reference_logits(weight: np.ndarray, matrix: np.ndarray, message: np.ndarray, k: int, rounds: int) -> np.ndarray:
    """NeuralMark's extraction, position by position."""
    values = list(weight.reshape(-1))
    for _ in range(rounds):
        values = values[: len(values) // len(message) * len(message)]
        values = [v for i, v in enumerate(values) if message[i % len(message)]]
    values = values[: len(values) // k * k]
    z = np.array([np.mean(values[j::k]) for j in range(k)])
    return z @ matrix


# Pictures


SIZES = [(48, 64), (50, 37), (64, 48), (40, 40), (33, 70), (48, 48), (64, 64), (35, 51), (48, 50), (70, 33), (40, 60)]


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """A smooth picture (width, height) of its own."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def restoration(folder: Path) -> list[str]:
    """A small restoration task on pictures of many sizes, and a network of 120,000 weights."""
    data = ["task=restoration", "task.patch=16", "data=imagefolder", f"data.path={folder}", "data.label=small"]
    model = ["model=unet", "model.width=16", "model.depth=2"]
    return [*data, "data.attacker=0.4", *model, "train.epochs=40", "train.batch_size=12", "train.lr=0.01", "device=cpu"]


def restoration_task(folder: Path, results: Path, *more: str, say=lambda line: None) -> RestorationTask:
    cfg = config(*restoration(folder), *more)
    return spec.build(cfg.task, "task").open(
        spec.build(cfg.data, "data"), Cache(str(results / "cache"), None), CPU, say
    )


# Masks

SCENES = (
    *("task=segmentation", "data.image_size=32", "data.block=16", "data.tests=8", "data.crop=2"),
    "data.attacker=0.25",
)
DEEPLAB = (
    *("model=smp", "model.name=deeplabv3", "model.encoder=tu-test_resnet", "+model.kwargs.encoder_depth=4"),
    *("+model.kwargs.encoder_output_stride=8", "+model.kwargs.decoder_channels=32"),
    "+model.kwargs.decoder_atrous_rates=[1,2,3]",  # 4 x 4 maps
)


def segmentation(*more: str) -> list[str]:
    """A small segmentation task and a DeepLab of 300,000 weights."""
    return [*SCENES, *DEEPLAB, "train.epochs=25", "train.lr=0.005", "device=cpu", *more]


def segmentation_task(results: Path, *more: str) -> SegmentationTask:
    cfg, cache = config(*segmentation(*more)), Cache(str(results / "cache"), None)
    return spec.build(cfg.task, "task").open(spec.build(cfg.data, "data"), cache, CPU, lambda line: None)


# Text

LANGUAGE = (
    *("task=language", "task.context=32", "task.written=8", "data.vocabulary=300", "data.train_limit=16"),
    *("data.test_limit=3", "model.width=24", "model.heads_=2", "train.epochs=6", "train.lr=0.004", "device=cpu"),
)


def language(results: Path, *more: str, say=lambda line: None):
    """A small task of text, open, and the network's configuration."""
    cfg = config(*LANGUAGE, *more)
    data = spec.build(cfg.data, "data")
    task = spec.build(cfg.task, "task").open(data, Cache(str(results / "cache"), None), CPU, say)
    return task, spec.build(cfg.model, "model")


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """train, train_labels, test, test_labels of a decoded data set."""
    return load_file(folder / "images.safetensors")
