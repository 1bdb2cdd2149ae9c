"""Weights from files that anybody wrote: what is read, under which names, and that nothing of a file is run."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from bench.errors import UserError
from bench.models import checkpoints


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


STATE = small().state_dict()


def equal(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (STATE, ()),
        ({"state_dict": STATE, "epoch": 3}, ("the weights under state_dict are read",)),
        ({"model": STATE, "optimizer": {"state": {}}}, ("the weights under model are read",)),
        ({"model": {"model_state_dict": STATE}}, ("the weights under model/model_state_dict are read",)),
        ({"ema": STATE, "step": torch.tensor(3)}, ("the weights under ema are read",)),
        (
            {"model": STATE, "ema": STATE},
            ("the weights under model are read", "ema beside them are not read (--under)"),
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_what_torch_saves_is_read_and_where_it_was_is_said(tmp_path, content, said, suffix):
    torch.save(content, path := tmp_path / f"w{suffix}")
    found = checkpoints.read(path)
    assert equal(found.tensors, dict(STATE))
    assert found.said == said


def test_one_entry_may_be_asked_for(tmp_path):
    other = {k: v + 1 for k, v in STATE.items()}
    torch.save({"model": STATE, "ema": other, "old": {"weights": STATE}}, path := tmp_path / "w.pth")
    assert equal(checkpoints.read(path, "ema").tensors, other)
    assert equal(checkpoints.read(path, "old/weights").tensors, dict(STATE))
    with pytest.raises(UserError, match="nothing is under best; there are model, ema, old"):
        checkpoints.read(path, "best")


class Runs:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": STATE, "args": x}, lambda x: {"w": [x]}])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_ran(tmp_path, write, wrap):
    write(wrap(Runs(tmp_path / "ran")), path := tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds more than tensors.*to load it would run code, and nothing was") as told:
        checkpoints.read(path)
    assert told.value.code == 2
    assert "torch.save(model.state_dict(), FILE)" in str(told.value)
    assert not (tmp_path / "ran").exists()


def test_a_whole_network_names_its_class(tmp_path):
    torch.save(small(), path := tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds more than tensors \(torch.nn.modules.container.Sequential\)"):
        checkpoints.read(path)


def test_sizes_that_are_not_there_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**6, 10**7)}, path := tmp_path / "w.pth")
    with pytest.raises(UserError, match="less than that is stored"):
        checkpoints.read(path)
    torch.save({"w": torch.zeros(2, 2).to_sparse()}, path)
    with pytest.raises(UserError, match="w is no plain tensor"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("w.pth", b"junk" * 99, "torch reads no weights from it"),
        ("w.pth", b"", "torch reads no weights from it"),
        ("w.safetensors", b"\xff" * 64, "no safetensors file"),
        ("w.gguf", b"GGUF", "GGUF holds blocks"),
        ("w.h5", b"", "read are .safetensors"),
        ("x.safetensors.index.json", b"{}", "no index of shards"),
        ("x.safetensors.index.json", b'{"weight_map": {"a": "../../etc/x.safetensors"}}', "beside the index"),
        ("x.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors is missing"),
    ],
)
def test_other_files_are_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as told:
        checkpoints.read(tmp_path / name)
    assert told.value.code == 2
    assert "\n" not in str(told.value)


def test_no_tensors_no_file_no_regular_file(tmp_path):
    torch.save({"model": {"lr": 3}}, path := tmp_path / "w.pth")
    for place, said in ((path, "no tensors by name"), (tmp_path / "none.pth", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=said):
            checkpoints.read(place)
    with pytest.raises(UserError, match="no regular file"):
        checkpoints.read("/dev/zero")


def test_shards_are_one_network_also_by_their_folder(tmp_path):
    names = [*STATE]
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for shard, own in shards.items():
        save_file({n: STATE[n] for n in own}, tmp_path / shard)
    where = {n: shard for shard, own in shards.items() for n in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    for place in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = checkpoints.read(place)
        assert equal(found.tensors, dict(STATE))
        assert len(found.files) == 3


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.backbone."])
def test_what_wraps_all_names_is_left_out_and_said(prefix):
    wrapped = checkpoints.of({prefix + k: v for k, v in STATE.items()})
    found = checkpoints.unwrapped(wrapped, ["0.weight", "2.weight"])
    assert equal(found.tensors, dict(STATE))
    assert (found.prefix, found.said) == (prefix, (f"{prefix} is left out of its tensors' names",))


def test_two_networks_in_one_file_are_not_guessed_among():
    both = checkpoints.of({start + k: v for start in ("student.", "teacher.") for k, v in STATE.items()})
    with pytest.raises(UserError, match=r"several networks in one file \(student., teacher.\): --prefix"):
        checkpoints.unwrapped(both, ["0.weight"])


@pytest.mark.parametrize(
    "norm",
    [
        weight_norm,
        lambda m: weight_norm(m, dim=1),
        lambda m: weight_norm(m, dim=None),
        parametrizations.weight_norm,
        spectral_norm,
        parametrizations.spectral_norm,
    ],
)
@pytest.mark.parametrize("layer", [lambda: nn.Conv2d(3, 5, 3), lambda: nn.Linear(6, 5), lambda: nn.Conv1d(4, 2, 3)])
def test_parametrised_weights_are_what_the_network_computes(norm, layer):
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = norm(layer()).eval()
    shape = made.weight.shape
    made(torch.randn(1, *{4: (3, 5, 5), 2: (6,), 3: (4, 5)}[len(shape)]))
    found = checkpoints.folded(checkpoints.of(made.state_dict()))
    assert found.tensors.keys() == {"weight", "bias"}
    torch.testing.assert_close(found.tensors["weight"], made.weight.detach(), rtol=1e-5, atol=1e-6)
    assert found.said == ("1 weights computed from their parametrisation",)
