"""A mark for somebody else's loop: any method that can, any network, as it is wrapped and whatever it is stored in."""

from __future__ import annotations

import copy
import itertools
import stat
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import bench
from bench.errors import ConfigError, UserError
from bench.owner import keyfile
from bench.owner.watermark import bare, plain
from tests.bench.owner.conftest import net, permuted, trained

OPTIONS = {
    "uchida": {"n_bits": 48},
    "vote": {"n_bits": 48},
    "neuralmark": {"n_bits": 64, "k": 64, "rounds": 1},
    "greedy": {"n_bits": 64, "row": 16, "divider": 4},
    "riga": {"n_bits": 96, "hidden": 50, "unmarked": 200, "rate": 0.01, "lambda": 5.0},
    "watermas": {"n_bits": 64, "sharpness": 0},
    "tondi": {"n_bits": 64, "spread": 8},
    "tattooed": {"n_bits": 40, "share": 0.5, "gamma": 2.0, "d_c": 4, "layer": "*"},
    "frequency": {"n_bits": 48, "module": False},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_that_can_marks_verifies_and_is_read_from_a_file(method, tmp_path):
    model = net()
    more = {"lambda": 5.0} if method in ("neuralmark", "greedy", "frequency") else {}
    mark = bench.Watermark(method, model, seed=3, **OPTIONS[method], **more)
    assert mark.penalty(model).shape == ()
    trained(model, mark, 150)
    found = mark.verify(model)
    assert found, found
    torch.save(model.state_dict(), tmp_path / "marked.pth")
    mark.save(tmp_path / "key.safetensors")
    again = bench.verify(tmp_path / "marked.pth", tmp_path / "key.safetensors")
    assert (again.ber, again.log10_p, again.checks) == (found.ber, found.log10_p, found.checks)
    assert not bench.verify(net(9), tmp_path / "key.safetensors")


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("boxfree", {}, "embedded by `python -m bench.embed` alone: it trains on a task's own batches"),
        ("trigger", {}, "alone: it trains on a task's own batches"),
        ("frequency", {}, "alone: it adds a module to the network"),
        ("watermas", {}, "alone: it sharpens the loss"),
        ("tondi", {"situation": "scratch"}, "alone: deviation=trained trains a copy first"),
        ("uchida", {"situation": "distill"}, "alone: situation=distill has no labels"),
        ("none", {}, "alone"),
        ("uchdia", {}, "did you mean 'uchida'"),
        ("uchida", {"nbits": 3}, "nbits: no option of method uchida; did you mean 'n_bits'"),
        ("uchida", {"n_bits": 10**6}, "choose a larger layer"),
        ("uchida", {"n_bits": -1}, "must be at least 1"),
        ("uchida", {"n_bits": 20}, "20 bits verify at no alpha below"),
        ("uchida", {"layer": "nowhere"}, "matches no convolution"),
        ("uchida", {"seed": 2**70}, "seed="),
    ],
)
def test_what_cannot_be_is_one_line(method, options, why):
    with pytest.raises(ConfigError, match=why) as told:
        bench.Watermark(method, net(), **options)
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match=r"a network is a torch\.nn\.Module, not int"):
        bench.Watermark(method, 3, **options)


def test_the_head_carries_no_mark_and_a_layer_may_be_named():
    assert bench.Watermark("uchida", net(), seed=0, n_bits=40).key.where == ("last.0.weight",)
    assert bench.Watermark("uchida", net(), seed=0, n_bits=40, layer="body.0").key.where == ("body.0.weight",)
    model = net()
    bench.Watermark("uchida", model, seed=0, n_bits=40)
    assert not hasattr(model, "anatomy")  # nothing of it stays in somebody's network


def test_keys_are_drawn_from_the_operating_system_unless_a_seed_is_given():
    keys = [bench.Watermark("uchida", net(), n_bits=48, seed=s).key for s in (None, None, 5, 5, 6)]
    same = [torch.equal(a.message, b.message) for a, b in itertools.pairwise(keys)]
    assert same == [False, False, True, False]


@pytest.mark.parametrize("method", ["uchida", "watermas"])
def test_wrappers_are_seen_through(method):
    model = net()
    options = OPTIONS[method]
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        assert bare(wrapped) is model
    wrapped = nn.DataParallel(model)
    mark = bench.Watermark(method, wrapped, seed=2, **options)
    trained(model, mark, wrapped=wrapped)
    assert mark.verify(wrapped)
    assert mark.verify(wrapped.state_dict())
    assert "module. is left out of its tensors' names" in mark.verify(wrapped.state_dict()).said


@pytest.mark.parametrize("method", ["uchida", "tondi"])
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
def test_normalised_layers_are_marked_through_their_parametrisation(method, norm, tmp_path):
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm(model.last[0])
    mark = bench.Watermark(
        method,
        model,
        seed=4,
        layer="last.0",
        example=torch.randn(2, 3, 8, 8),
        **{
            "uchida": {"n_bits": 48},
            "tondi": {"n_bits": 40, "spread": 8},
        }[method],
    )
    trained(model, mark)
    assert mark.verify(model)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    mark.save(tmp_path / "key.safetensors")
    found = bench.verify(tmp_path / "w.pth", tmp_path / "key.safetensors")
    assert found
    assert "1 weights computed from their parametrisation" in found.said
    if norm is parametrizations.weight_norm:  # by what it computes, channels go back as they do in a plain network
        other = permuted(plain(model).state_dict())
        assert not bench.verify(other, tmp_path / "key.safetensors")
        assert bench.verify(other, tmp_path / "key.safetensors", reference=tmp_path / "w.pth")


def test_half_precision_is_marked_and_read(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = net().to(dtype)
        mark = bench.Watermark("watermas", model, seed=1, n_bits=64, sharpness=0)
        mark.step(model)
        assert model.last[0].weight.dtype == dtype
        assert mark.verify(model).ber == 0
        assert mark.verify(model.state_dict()).ber == 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(40, 48)
        self.h = nn.Linear(48, 48)
        self.lm_head = nn.Linear(48, 40, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens, mask=None):
        return {"logits": self.lm_head(torch.relu(self.h(self.wte(tokens))))}


def test_tied_weights_are_one_and_found_by_either_name(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    mark = bench.Watermark("uchida", model, seed=0, n_bits=40, layer="lm_head")
    trained(model, mark)
    model(tokens=torch.randint(0, 40, (2, 6)))  # which notes what it takes: words, by name
    mark.save(tmp_path / "key.safetensors")
    state = model.state_dict()
    for name in ("wte.weight", "lm_head.weight"):
        rest = {k: v for k, v in state.items() if k != name}
        assert bench.verify(rest, tmp_path / "key.safetensors").ber == 0
        # The columns of both in another order, and h's on either side with them: the same function.
        order = torch.randperm(48)
        other = {k: v[..., order] for k, v in rest.items()}
        other["h.weight"] = other["h.weight"][order]
        assert not bench.verify(other, tmp_path / "key.safetensors")
        assert bench.verify(other, tmp_path / "key.safetensors", reference=rest)
    assert keyfile.read(tmp_path / "key.safetensors").traced


class Conv1D(nn.Module):
    """As transformers has it: the weight is (in, out)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("method", ["uchida", "tondi", "neuralmark"])
def test_weights_stored_the_other_way_round_are_turned(method, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), Conv1D(48, 64), nn.ReLU(), nn.Linear(48, 4))
    options = {"uchida": {"n_bits": 48}, "tondi": {"n_bits": 40, "spread": 8}}.get(method, OPTIONS["neuralmark"])
    mark = bench.Watermark(method, model, seed=0, layer="2", example=torch.randn(3, 10), **options)
    if method == "uchida":  # its filter is a mean over outputs, of as many entries as there are inputs
        assert mark.key.secret["projection"].shape == (48, 64)
    trained(model, mark, 150)
    mark.save(tmp_path / "key.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert mark.verify(model)
    assert bench.verify(tmp_path / "w.pth", tmp_path / "key.safetensors").ber == mark.verify(model).ber
    other = {k: v.clone() for k, v in model.state_dict().items()}
    one, two = torch.randperm(64), torch.randperm(48)
    other["0.weight"], other["0.bias"] = other["0.weight"][one], other["0.bias"][one]
    other["2.weight"] = other["2.weight"][one][:, two]
    other["4.weight"] = other["4.weight"][:, two]
    assert not bench.verify(other, tmp_path / "key.safetensors")
    found = bench.verify(other, tmp_path / "key.safetensors", reference=tmp_path / "w.pth")
    assert found, found.said


@pytest.mark.parametrize(
    "kind",
    [
        lambda: nn.Sequential(nn.Conv1d(2, 12, 3), nn.Conv1d(12, 16, 3), nn.Conv1d(16, 4, 3)),
        lambda: nn.Sequential(nn.Conv3d(2, 12, 3), nn.Conv3d(12, 16, 3), nn.Conv3d(16, 4, 3)),
        lambda: nn.TransformerEncoderLayer(48, 2, 96, batch_first=True),
    ],
)
def test_layers_of_any_dimension_carry_marks(kind, tmp_path):
    torch.manual_seed(0)
    model = kind()
    mark = bench.Watermark("uchida", model, seed=0, n_bits=32)
    trained(model, mark)
    mark.save(tmp_path / "key.safetensors")
    assert mark.verify(model)
    assert bench.verify(model.state_dict(), tmp_path / "key.safetensors")


def test_the_key_is_for_its_owner_and_is_not_written_over(tmp_path):
    mark = bench.Watermark("uchida", net(), seed=0, n_bits=40)
    path = mark.save(tmp_path / "deep" / "key.safetensors")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        mark.save(path)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["key.safetensors"]  # nothing aside
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is there already"):
        mark.save(link)
    assert not (tmp_path / "elsewhere").exists()


def test_a_network_is_left_as_it_was_but_for_the_mark():
    model = net()
    before = copy.deepcopy(model.state_dict())
    mark = bench.Watermark("uchida", model, seed=0, n_bits=40)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    hooks = len(model._forward_pre_hooks)
    model(torch.randn(2, 3, 8, 8))
    assert (hooks, len(model._forward_pre_hooks)) == (1, 0)  # one that notes what the network takes, once
    mark.step(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert float(bench.Watermark("tondi", model, seed=0, **OPTIONS["tondi"]).penalty(model)) == 0
