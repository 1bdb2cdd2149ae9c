"""Hashes that must not change: run ids, cache addresses and committed results are named by them.

`python -m tests.contract.test_golden` writes golden.json anew: for what is added, never for what comes out otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import run, spec
from bench.cli.usage import options
from bench.store.runs import read_runs
from tests.helpers import config

GOLDEN = Path(__file__).with_name("golden.json")
COMMITTED = [GOLDEN.parents[2] / "results" / name for name in ("reference", "neuralmark_2025_small", "zhang_2021")]
GROUPS = ("method", "attack", "train", "model", "data")
NEEDED = {"timm": ["model.name=test_resnet"], "torchvision": ["model.name=googlenet"]}
NEEDED |= {name: ["data.path=somewhere"] for name in ("parquet", "imagefolder", "csv", "camvid", "text")}
NEEDED |= {"smp": ["model.name=fpn"], "torchvision_segmentation": ["model.name=fcn_resnet50"]}
NEEDED |= {"gpt2": ["model.name=gpt2"], "module": ["model.name=builtins:object"]}
SMALL = ("device=cpu", "model=timm", "model.name=test_resnet", "train.epochs=6")
PICTURES = ("device=cpu", "task=restoration", "data=digits", "method=boxfree", "method.payload=image")
RUNS = {
    "neuralmark, prune": ("method=neuralmark", "attack=prune", *SMALL),
    "uchida, distill": ("method=uchida", "attack=distill", "attack.seed=7", "seed=3", *SMALL),
    "watermas, finetune, small": (
        "method=watermas",
        "attack=finetune",
        "scale=small",
        "verify.alpha=1e-6",
        "device=cpu",
    ),
    "boxfree, surrogate": (*PICTURES, "attack=surrogate", "method.logo={folder}/logo", "attack.vgg={folder}/vgg"),
    "boxfree, residual, ssim": (*PICTURES, "attack=residual", "task.metric=ssim"),
}


def node(group: str, name: str) -> str:
    """The digest of a choice as it is by default: of its values, or where they are told by content of its identity."""
    made = spec.build(config(f"{group}={name}", *NEEDED.get(name, ()))[group], group)
    if group == "data":
        return spec.digest(made.content("0"))
    return spec.digest(made.identity() if group == "model" else spec.identity(made, group))


def hashes(words: tuple[str, ...], folder: Path) -> list[str]:
    """run_id and config_hash, and the digests of what host and mark are addressed by."""
    for name in ("logo", "vgg"):
        (folder / name).write_bytes(name.encode())
    x = run.prepare(config(*(w.format(folder=folder) for w in words), f"results_dir={folder}"))
    return [*x.hashes, spec.digest(x.host_identity), spec.digest(x.mark_identity)]


def read() -> dict:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_hashes_as_it_did(group):
    found, golden = {name: node(group, name) for name in options(group)}, read()["nodes"][group]
    assert {name: found.get(name) for name in golden} == golden
    assert set(found) == set(golden), "new choices: python -m tests.contract.test_golden"


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_named_as_they_were(name, tmp_path):
    assert hashes(RUNS[name], tmp_path) == read()["runs"][name]


def test_committed_results_hash_as_they_did():
    assert recorded() == read()["recorded"]


def recorded() -> dict[str, str]:
    """Method, attack, training and judge of every committed result, built from its own configuration."""
    found = {}
    for r in (r for folder in COMMITTED for r in read_runs(folder)):
        nodes = OmegaConf.create(r["config"])
        built = {group: spec.build(nodes[group], group) for group in ("method", "attack", "train", "verify")}
        found[r["rows"][0]["run_id"]] = spec.digest(built)
    return found


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = {
            "nodes": {group: {name: node(group, name) for name in options(group)} for group in GROUPS},
            "runs": {name: hashes(words, Path(folder)) for name, words in RUNS.items()},
            "recorded": recorded(),
        }
    GOLDEN.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
