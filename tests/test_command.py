"""A run's command is the inverse of composing: what it composes is the configuration it was made from."""

from __future__ import annotations

import shlex

import pytest
from omegaconf import OmegaConf

from bench.command import GROUPS, command
from tests.conftest import ATTACKS, METHODS, config


def composed(*overrides: str) -> dict:
    return OmegaConf.to_container(config(*overrides), resolve=True)


def words(line: str) -> list[str]:
    start = ["python", "-m", "bench"]
    parts = shlex.split(line)
    assert parts[:3] == start
    return parts[3:]


def check(*overrides: str) -> str:
    """Composing what the command says gives the configuration back; returns the command."""
    was = composed(*overrides)
    line = command(was, [was["seed"]])
    now = composed(*words(line), f"results_dir={was['results_dir']}")
    for group in (*GROUPS, "verify", "seed"):
        assert now[group] == was[group], line
    return line


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_comes_back_with_nothing_to_add(attack):
    line = check(f"attack={attack}", "method=uchida")
    assert words(line) == ["method=uchida", f"attack={attack}", "model=resnet18", "data=digits", "seed=0"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_back_at_another_scale(method):
    line = check(f"method={method}", "scale=small", "seed=3", "verify.alpha=1e-6")
    assert "verify.alpha=1e-06" in line
    assert "attack.ratios" in line


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=timm", "model.name=test_resnet", "train.epochs=6", "data.test_limit=180"),
        ("model=resnet18_cifar", "+model.kwargs.drop_rate=0.1", "train=long", "train.milestones=[0.5,0.75]"),
        ("attack=distill", "model@attack.student=resnet34", "attack.student.stem=small"),
        ("attack=distill", "attack.student=null", "attack.seed=7"),
        ("attack=finetune", "data@attack.transfer=cifar100", "attack.transfer.train_limit=10"),
        ("data=parquet", r"data.path='../my data/it\'s'", "data.label='1e3'", "method.layer='null'"),
        ("data=cifar10", "results_dir=/tmp/elsewhere", "model=torchvision", "model.name=googlenet"),
        ("experiment=watermas_2024", "attack=noise", "method.layer='layer4.*'"),
        ("experiment=uchida_2017", "method.projection=direct", r"method.layer='a\\\\'"),
    ],
)
def test_what_was_chosen_comes_back(overrides):
    check(*overrides)


def test_seeds_are_a_sweep_and_defaults_are_left_out():
    was = composed("method=uchida", "train.epochs=3")
    line = command(was, [2, 0, 1, 1])
    said = "python -m bench -m method=uchida attack=prune model=resnet18 data=digits train.epochs=3 seed=0,1,2"
    assert line == said


def test_a_method_from_elsewhere_comes_with_all_its_values():
    was = composed()
    was["method"] = {"_target_": "mine.Mine", "n_bits": 64, "note": "a 'b'"}
    line = command(was, [0])
    assert line.startswith("python -m bench --config-dir DIR method=mine method.n_bits=64 ")
    assert "method.note='a \\'b\\''" in shlex.split(line)
