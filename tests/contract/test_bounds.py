"""Every number of a configuration has bounds: nan, infinity and numbers beyond all reason are one line, before anything
is trained."""

from __future__ import annotations

import typing
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from bench import spec
from bench.cli.usage import options
from bench.errors import ConfigError
from tests.helpers import config

GROUPS = ("method", "attack", "data", "model", "task", "train")
NODES = [(group, name) for group in GROUPS for name in options(group)]
NONSENSE = ("nan", "1e30", "-1e30")
# Another field, or what it is of, says how far it may go.
FREE = {"max_damage"}


def node(group: str, name: str):
    """The group's node of a configuration that composes, its holes filled."""
    cfg = config(f"{group}={name}")[group]
    for key in cfg:
        if cfg._get_node(key)._is_missing():
            cfg[key] = "x"
    return cfg


@pytest.mark.parametrize(("group", "name"), NODES)
def test_every_number_has_bounds_and_nonsense_is_one_line(group, name):
    cfg = node(group, name)
    cls = spec.target(cfg, group)
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        if f.name in FREE or not any(kind in str(hints[f.name]) for kind in ("int", "float")):
            continue
        assert "within" in f.metadata, f"{group}.{f.name} has no bounds"
        for value in map(float, NONSENSE):
            odd = cfg.copy()
            odd[f.name] = [value] if OmegaConf.is_list(cfg[f.name]) else value
            with pytest.raises(ConfigError, match=f.name):
                spec.build(odd, group)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("verify.alpha=nan", "must be a finite number"),
        ("verify.max_damage=nan", "must be a finite number"),
        ("threads=100000", "threads=100000: must be from 1 to"),
        ("train.momentum=5", "train.momentum=5.0: must be in [0, 1)"),
        ("train.batch_size=1e20", "batch_size"),
        ("data.train_limit=-3", "data.train_limit=-3: must be at least 1"),
        ("data.split_seed=-1", "data.split_seed=-1: must be from 0"),
        ("attack.ratios=[0.5,nan]", "attack.ratios=nan: must be a finite number"),
    ],
)
def test_what_was_accepted_once(tmp_path, word, said):
    from bench.run import prepare

    with pytest.raises(ConfigError) as error:
        prepare(config("attack=prune", word, f"results_dir={tmp_path}"))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.image_size=4000"], "1,797 images of 4000 pixels takes 230 GB of memory, of 1: lower data.image_size"),
        (["task=segmentation", "data=scenes", "model=unet_tiny", "data.block=1000000"], "scenes of 64 pixels takes"),
    ],
)
def test_memory_is_estimated_before_it_is_asked_for(tmp_path, monkeypatch, words, said):
    from bench import machine
    from bench.run import prepare

    monkeypatch.setattr(machine, "memory", lambda: 10**9)
    with pytest.raises(ConfigError) as error:
        prepare(config("attack=prune", "device=cpu", *words, f"results_dir={tmp_path}"))
    assert said in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".safetensors"]


def test_memory_that_is_not_to_be_had_is_one_line(tmp_path, monkeypatch):
    import torch

    from bench import run, stages
    from tests.helpers import tiny

    monkeypatch.setattr(stages, "mark", lambda x: torch.empty(2**50))
    outcome = run.job(tiny(tmp_path, "uchida", "prune"))
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "out of memory (4503599627370496 bytes more were asked for)" in outcome.message
    assert "lower train.batch_size" in outcome.message
