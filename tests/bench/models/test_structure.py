"""What may be exchanged in a network, kept as data: the same families, and nothing that does not hold together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench.models import align, places
from bench.models.structure import packed, unpacked


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


@pytest.fixture(scope="module")
def traced() -> align.Traced:
    return align.traced(network(), (torch.randn(2, 3, 9, 9),))


def described(structure) -> list:
    return [(f.places, [r.tolist() for r in f.roots]) for f in places.families(structure)]


@pytest.mark.parametrize("mode", ["channels", "blocks", "scale"])
def test_what_was_kept_is_what_was_found(traced, mode):
    own = traced.structures[mode]
    arrays, more = packed(own)
    again = unpacked(arrays, more, own.tensors)
    assert described(again) == described(own)
    assert again.channels() == own.channels()
    assert again.statistics == own.statistics


def test_a_suspect_is_put_back_by_what_was_kept(traced):
    arrays = {mode: packed(s) for mode, s in traced.structures.items()}
    state = traced.model.state_dict()
    kept = {mode: unpacked(*arrays[mode], dict(state)) for mode in arrays}
    ref = align.referring(align.Traced(traced.model, kept, traced.flips), {})
    order = torch.tensor([2, 0, 1, 3, 7, 6, 5, 4])
    suspect = copy.deepcopy(traced.model)
    with torch.no_grad():
        for part in (suspect[0].weight, suspect[0].bias, *suspect[1].parameters(), *suspect[1].buffers()):
            if part.dim():
                part.copy_(part[order].clone())
        # Groups of a convolution keep their channels: here each group's four move among themselves.
        for rows, own in ((slice(0, 3), order[:4]), (slice(3, 6), order[4:] - 4)):
            suspect[3].weight[rows] = suspect[3].weight[rows][:, own].clone()
    x = torch.randn(4, 3, 9, 9)
    if not torch.allclose(suspect(x), traced.model(x), atol=1e-5):
        pytest.fail("the suspect should compute what the network did")
    found = align.aligned(ref, suspect)
    assert all(torch.equal(found.model.state_dict()[k], state[k]) for k in state)


@pytest.mark.parametrize(
    "lie",
    [
        lambda arrays, more: arrays.update(root=arrays["root"][:5]),
        lambda arrays, more: arrays.update(ids=arrays["ids"][:3]),
        lambda arrays, more: arrays.update(ids=arrays["ids"] + 10**6),
        lambda arrays, more: arrays.pop("label"),
        lambda arrays, more: more["shapes"].update({"0.weight": [1, 1]}),
        lambda arrays, more: more["shapes"].update({"gone": [2]}),
        lambda arrays, more: more["terms"].update({"0.weight": [[10**9, 10**9]]}),
        lambda arrays, more: more["terms"].update({"0.weight": 3}),
        lambda arrays, more: more.pop("statistics"),
    ],
)
def test_what_does_not_hold_together_is_refused(traced, lie):
    own = traced.structures["channels"]
    arrays, more = packed(own)
    more = copy.deepcopy(more)
    lie(arrays, more)
    with pytest.raises(ValueError, match=r".+"):
        unpacked(arrays, more, own.tensors)
