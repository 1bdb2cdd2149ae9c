"""Units that change nothing: how many there are, what they weigh, and that nothing can tell but shapes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import _widen
from attacks._widen import KINDS, families, grow
from attacks.obfuscate import Obfuscate
from bench import judge
from bench.errors import ConfigError
from bench.models.anatomy import Anatomy
from bench.types import Victim
from tests.attacks.test_permute import Task, build, distance, images
from tests.helpers import COMPLETE, build_attack, fit, victim

# Share of a network's tensors whose shapes must differ: of vit the hidden units only, for its stream is normalised.
NETS = {"test_resnet": 1.0, "mobilenetv3_small_100": 1.0, "vit_tiny_patch16_224": 0.15, "resnet18": 1.0}
FURTHER = {"densenet121": 1.0, "convnext_atto": 0.1, "swin_tiny_patch4_window7_224": 0.1, "vgg11_bn": 0.9}
SHOWN = [*NETS, *(pytest.param(n, marks=COMPLETE) for n in FURTHER)]


def attack(kinds=KINDS, amounts=(0.3,), permute=True, group=3, scale=4.0) -> Obfuscate:
    options = {"amounts": list(amounts), "kinds": list(kinds), "group": group, "permute": permute, "scale": scale}
    return Obfuscate(goal="removal", seed=0, knows=["weights"], data="none", **options)


def snapshots(net: nn.Module, seed: int = 3, **options) -> list:
    return list(attack(**options).run(Victim(net, None, Task()), np.random.default_rng(seed), None))


def shapes(net: nn.Module) -> dict[str, tuple]:
    """Of all that a layer has but scalars; what the builder added to normalise inputs is none of it."""
    state = net.state_dict().items()
    return {name: tuple(tensor.shape) for name, tensor in state if tensor.dim() and not name.startswith("input_")}


@pytest.mark.parametrize("name", SHOWN)
def test_wider_with_the_same_logits_and_names(name):
    net = build(name)
    (snapshot,) = snapshots(net)
    assert not snapshot.skipped
    assert distance(net, snapshot.model) <= 1e-4
    old, new = shapes(net), shapes(snapshot.model)
    assert old.keys() == new.keys()
    grown = [name for name in old if old[name] != new[name]]
    assert (len(grown) + 1) / len(old) >= (NETS | FURTHER)[name]  # but for the bias of the logits
    assert all(a <= b for name in old for a, b in zip(old[name], new[name], strict=True))
    twin = copy.deepcopy(snapshot.model)
    assert distance(snapshot.model, twin) == 0
    other = copy.deepcopy(snapshot.model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(snapshot.model.state_dict())
    assert distance(snapshot.model, other) == 0
    for module in snapshot.model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, nn.Conv2d):
            assert module.out_channels == len(module.weight)
            assert module.in_channels == module.weight.shape[1] * module.groups
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean)


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_keeps_the_logits(kind, permute):
    net = build("test_resnet")
    few, many = snapshots(net, kinds=[kind], amounts=[0.1, 1.0], permute=permute)
    for snapshot in (few, many):
        assert distance(net, snapshot.model) <= 1e-4
    widths = [len(m.layer2[0].conv1.weight) for m in (net, few.model, many.model)]
    assert widths[1] >= widths[0] * 1.1
    assert widths[2] in (2 * widths[0], 2 * widths[0] + 1)  # a clique's last has two units at least


def inner(kind: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Blocks before and after, rows and columns of the hidden units that were added; nothing is moved.

    Columns as the old units of the next layer read them: what new ones read is drawn.
    """
    net = build("test_resnet")
    (snapshot,) = snapshots(net, kinds=[kind], permute=False)
    old, new = net.layer2[0], snapshot.model.layer2[0]
    width = len(old.conv1.weight)
    return old, new, new.conv1.weight[width:], new.conv2.weight[: len(old.conv2.weight), width:]


def test_zeros_are_read_by_nothing_and_have_weights_like_others():
    old, new, rows, columns = inner("zero")
    width = len(old.conv1.weight)
    assert not columns.any()
    assert all(row.abs().sum() > 0 for row in rows)
    assert not (torch.cdist(rows.flatten(1), new.conv1.weight[:width].flatten(1)) < 1e-6).any()
    for vector in ("weight", "bias", "running_mean", "running_var"):  # each unit's, whole
        assert set(getattr(new.bn1, vector)[width:].tolist()) <= set(getattr(old.bn1, vector).tolist())


def test_cliques_have_equal_rows_and_columns_that_cancel():
    _, _, rows, columns = inner("clique")
    rows = rows.flatten(1)
    sets = {tuple((torch.cdist(rows[[i]], rows) == 0).flatten().nonzero().flatten().tolist()) for i in range(len(rows))}
    assert sorted(sum(sets, ())) == list(range(len(rows)))
    assert {len(one) for one in sets} <= {2, 3}
    for one in sets:
        values = columns[:, list(one)]
        assert values.abs().amax() > 0
        assert values.sum(1).abs().amax() <= 1e-6 * values.abs().amax()


def test_split_units_share_what_they_send():
    old, new, rows, _ = inner("split")
    width, out = old.conv1.weight.shape[0], old.conv2.weight.shape[0]
    of = torch.cdist(rows.flatten(1), new.conv1.weight[:width].flatten(1)).argmin(1)
    assert all(torch.equal(row, new.conv1.weight[i]) for row, i in zip(rows, of, strict=True))
    sent = new.conv2.weight[:out, :width].clone().index_add(1, of, new.conv2.weight[:out, width:])
    assert torch.allclose(sent, old.conv2.weight, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(new.conv2.weight[:out, :width], old.conv2.weight)


def test_growth_is_at_least_the_share_and_of_all_kinds_alike():
    grown = grow(100, 0.9, list(KINDS), 3, np.random.default_rng(0))
    added = len(grown.source) - 100
    zeros = sum((grown.drawn == n).sum() == 1 for n in range(grown.drawn.max() + 1))
    cliques = sum(len(one) for one in grown.cliques)
    splits = (grown.drawn[100:] == -1).sum()
    assert added in (90, 91)
    assert zeros + cliques + splits == added
    assert max(zeros, cliques, splits) - min(zeros, cliques, splits) <= 3
    assert np.bincount(grown.source, grown.share) == pytest.approx(np.ones(100))  # nothing is lost of any unit


def test_branches_of_a_concatenation_grow_where_they_lie():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 5, 3)
            self.norm, self.last = nn.BatchNorm2d(11), nn.Conv2d(11, 4, 4)
            self.fc = nn.Linear(4 * 9, 10)  # a unit of `last` has nine columns

        def forward(self, x: Tensor) -> Tensor:
            x = x.float()[..., :14, :14] / 255
            x = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
            x = torch.nn.functional.max_pool2d(self.last(self.norm(x)).relu(), 3)
            return self.fc(x.flatten(1))

    torch.manual_seed(0)
    net = Joined().eval()
    found = {frozenset((p.name, p.axis) for p in family) for family in families(net, images(1))}
    assert frozenset({("last.weight", 0), ("last.bias", 0), ("fc.weight", 1)}) in found
    for permute in (False, True):
        (snapshot,) = snapshots(net, permute=permute)
        assert distance(net, snapshot.model) <= 1e-4
        widths = [len(getattr(snapshot.model, m).weight) for m in ("a", "b")]
        assert widths[0] >= 8
        assert widths[1] >= 7
        assert snapshot.model.norm.num_features == sum(widths)
        assert snapshot.model.fc.in_features == 9 * len(snapshot.model.last.weight) > 36


def test_the_victim_is_left_alone_and_runs_repeat():
    net = build("test_resnet")
    net.layer2.requires_grad_(False)
    state = copy.deepcopy(net.state_dict())
    (first,), (again,), (other,) = snapshots(net), snapshots(net), snapshots(net, seed=4)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    a, b, c = (s.model.state_dict() for s in (first, again, other))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert not all(torch.equal(value, c[name]) for name, value in a.items() if value.shape == c[name].shape)
    assert {n: p.requires_grad for n, p in first.model.named_parameters()} == {
        n: p.requires_grad for n, p in net.named_parameters()
    }
    assert not any(module.training for module in first.model.modules())


def test_what_does_not_hold_is_undone_and_the_rest_stays(monkeypatch):
    net = build("test_resnet")
    honest = _widen.grow

    def wrong(n, *options):
        grown = honest(n, *options)
        if n == 192:  # the stream of the third stage sends more than it did
            grown.share[:] *= 2
        return grown

    monkeypatch.setattr(_widen, "grow", wrong)
    (snapshot,) = snapshots(net)
    assert not snapshot.skipped
    assert distance(net, snapshot.model) <= 1e-4
    assert snapshot.model.layer3[0].conv3.weight.shape[0] == 192
    assert snapshot.model.layer3[0].conv3.weight.shape[1] > 48
    assert snapshot.model.layer3[0].bn3.num_features == 192


def test_a_network_without_inner_channels_is_skipped():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32**2, 10))
    net.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    (snapshot,) = snapshots(net)
    assert "no channels" in snapshot.skipped
    assert shapes(snapshot.model) == shapes(net)


def test_a_reader_that_goes_by_place_has_no_evidence(marked):
    x, model, key = marked("uchida")
    assert judge.judged(x, model, key)[0] == 0
    it = build_attack("obfuscate")
    for snapshot in it.run(victim(x, model, key), np.random.default_rng(0), fit(x)):
        assert not snapshot.skipped
        assert isinstance(snapshot.model.anatomy, Anatomy)
        assert not judge.carries(x, snapshot.model, key)
        assert judge.judged(x, snapshot.model, key)[0] == 0.5


def test_kinds_and_amounts_are_checked():
    for options in ({"kinds": []}, {"kinds": ["zero", "zero"]}, {"kinds": ["none"]}):
        with pytest.raises(ConfigError, match=r"attack\.kinds"):
            attack(**options)
    for amounts in ([], [0], [0.1, 0.1]):
        with pytest.raises(ConfigError, match=r"attack\.amounts"):
            attack(amounts=amounts)
    with pytest.raises(ConfigError, match=r"attack\.group"):
        attack(group=1)
