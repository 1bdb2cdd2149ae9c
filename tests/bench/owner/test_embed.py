"""python -m bench.embed: from somebody's checkpoint to a marked copy of it, its key and a commitment."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors.torch import load_file

import bench
from bench import embed, run, stages
from bench import verify as command
from bench.errors import ConfigError, UserError
from bench.owner import embedding
from tests.helpers import config

NETS = """
from torch import nn


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Small(nn.Module):
    def __init__(self, width=16, num_classes=10):
        super().__init__()
        self.body = nn.Sequential(block(3, width), block(width, 2 * width), block(2 * width, 2 * width))
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


broken = 3
"""
WORDS = ["model=module", "model.name=somebodys_nets:Small", "device=cpu", "train.lr=0.01", "verify.keys=50"]
WORDS += ["data.train_limit=600", "data.test_limit=60", "method=uchida", "method.n_bits=64"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "somebodys_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_what_cannot_be_is_said_before_anything_is_made(here):
    for words, said in (
        (WORDS, "out=FOLDER says where"),
        ([*WORDS, "out=x", "-m"], "no sweep"),
        ([*WORDS, "out=x", "method=nobody"], "unknown method"),
        (["method=none", "out=x", "device=cpu"], "embeds no mark"),
        (["out=somebodys_nets.py"], "no folder"),
        ([*WORDS, "out=x", "model.checkpoint=gone.pth"], "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            embed.run(words)
    (here / "kept").mkdir()
    (here / "kept" / "key.safetensors").symlink_to(here / "elsewhere")
    with pytest.raises(UserError, match=r"key\.safetensors is there already"):
        embed.run([*WORDS, "out=kept"])
    assert not (here / "x").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("somebodys_nets.Small", "a module and a name in it"),
        ("no_such_module:Net", "ModuleNotFoundError"),
        ("somebodys_nets:Smal", "has no Smal; did you mean 'Small'"),
        ("somebodys_nets:broken", "nothing to be called"),
        ("collections:OrderedDict", "gives a OrderedDict, no torch.nn.Module"),
    ],
)
def test_networks_that_are_none(here, name, said):
    with pytest.raises(ConfigError, match=said):
        stages.fresh(run.prepare(config("model=module", f"model.name={name}", "device=cpu", f"results_dir={here}")))


def test_a_network_that_is_given_is_taken_as_it_is():
    assert embedding.words(["method=uchida"]) == ["method=uchida", "attack=none"]
    given = embedding.words(["method=uchida", "model.checkpoint=x"])
    assert given[2:] == ["host.epochs=0", "method.situation=finetune", "attack=none"]
    own = ["method=tattooed", "model.checkpoint=x", "host.epochs=2"]
    assert embedding.words(own) == [*own, "attack=none"]  # it has no situation


@pytest.mark.slow
@pytest.mark.quick
def test_from_a_wrapped_checkpoint_in_bfloat16_to_a_mark_that_loads_where_it_loaded(here, capsys):
    x = run.prepare(config(*WORDS, "train.epochs=3", f"results_dir={here / 'results'}"))
    model = stages.fresh(x)
    state = {f"module.{k}": v for k, v in model.state_dict().items() if not k.startswith("input_")}
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    torch.save({"model": state, "epoch": 3}, "mine.pth")
    words = [*WORDS, "model.checkpoint=mine.pth", "method.epochs=8", "out=marked", "statement=Somebody, today"]
    assert embed.run(words) is True
    out = capsys.readouterr().out
    assert "fidelity" in out
    assert "0 of 50 random keys verify" in out
    made = load_file("marked/model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {k: (v.shape, v.dtype) for k, v in state.items()}
    assert stat.S_IMODE((here / "marked" / "key.safetensors").stat().st_mode) == 0o600
    assert (here / "marked" / "statement.txt").read_text() == "Somebody, today"
    told = json.loads((here / "marked" / "commitment.json").read_text())
    assert "Somebody" not in json.dumps(told)
    key, own = "marked/key.safetensors", ["--key", "marked/key.safetensors"]
    assert command.main(["marked/model.safetensors", *own, "--commitment", "marked/commitment.json"]) == 0
    assert command.main(["mine.pth", *own]) == 3
    # Another copy of the network is not written over, nor is another key the same.
    with pytest.raises(UserError, match="is there already"):
        embed.run(words)
    assert embed.run([*words[:-2], "out=again"]) is True
    assert not bench.verify("marked/model.safetensors", "again/key.safetensors")
    # What the harness' own attack exchanges and rescales, the key and the copy put back without the network's code.
    from attacks._disguise import disguise
    from tests.helpers import rng

    net = stages.fresh(x)
    net.load_state_dict({**net.state_dict(), **{k.removeprefix("module."): v.float() for k, v in made.items()}})
    suspect = net.eval()
    assert disguise(suspect, x.task.example(), 2.0, rng())[0]
    assert not bench.verify(suspect, key)
    assert bench.verify(suspect, key, reference="marked/model.safetensors")
