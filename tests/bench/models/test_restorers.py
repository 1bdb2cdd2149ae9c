"""Networks that restore pictures, and what they see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks._outputs import Changed
from bench import spec
from bench.models import anatomy, restorers, weights
from bench.models.base import Signature
from bench.threat import Service
from tests.helpers import config

IO = Signature(0, 32, (127.5,) * 3, (127.5,) * 3)


def restorer(name: str, width: int, depth: int) -> restorers.Restorer:
    return restorers.Restorer(label=None, checkpoint=None, name=name, width=width, depth=depth)


@pytest.mark.parametrize("name", list(restorers.NETWORKS))
def test_networks_start_as_the_identity_and_take_every_fitting_size(name):
    model = restorer(name, 4, 3)
    net = model.build(IO, 0).eval()
    for height, width in ((model.multiple * 4, model.multiple * 6), (model.multiple * 5, model.multiple * 4)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.allclose(net(images), images.float(), atol=1e-3)
    same, other = model.build(IO, 0).state_dict(), model.build(IO, 1).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), same.values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(same.values(), other.values(), strict=True))
    net.train()(images).square().mean().backward()
    assert net.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", list(restorers.NETWORKS))
def test_presets_build_and_offer_a_carrier_outside_the_head(name):

    net = spec.build(config("task=restoration", f"model={name}").model, "model").build(IO, 0)
    chosen = weights.choose(net, None, torch.Tensor.numel, 16_384, "weights")
    assert chosen in weights.candidates(net)
    assert not any(candidate.startswith("head") for candidate in weights.candidates(net))
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 3, 64, 64)


EXAMPLE = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "depth", "pixels"),
    [
        ("dncnn", 3, 7),  # 1 + 2 for each convolution
        ("dncnn", 8, 17),
        # Three convolutions back from the output: 7 pixels, 4 at half size; two there: 8, which are 16; two more: 20.
        ("unet", 1, 20),
        ("resnet_ir", 4, 81),
    ],
)
def test_receptive_fields(name, depth, pixels):
    net = restorer(name, 4, depth).build(IO, 0)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert anatomy.receptive_field(net, EXAMPLE) == pixels
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_receptive_field_is_what_a_change_of_the_input_reaches():
    """The same by hand: which outputs does one pixel change? As many as an output sees, on average over positions."""
    net = restorer("unet", 4, 2).build(IO, 0).double().eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight, 0.01, 0.02)
    start = torch.full((1, 3, 256, 4), 250.0, dtype=torch.float64)
    reached = []
    with torch.no_grad():
        for at in range(126, 130):
            changed = start.clone()
            changed[:, :, at] = 255.0
            reached.append(int(((net(changed) - net(start)).abs().amax((0, 1, 3)) > 0).sum()))
    assert sum(reached) / 4 == pytest.approx(anatomy.receptive_field(net, EXAMPLE), abs=4)


def test_nothing_is_said_of_what_a_service_or_changed_outputs_see():
    net = restorer("dncnn", 4, 3).build(IO, 0)
    trace = torch.ones(3, 32, 32)  # of the task's size, no other
    for suspect in (
        Service(net, "pictures"),
        Changed(net, lambda x: x - trace),
        Changed(Service(net, "pictures"), lambda x: x - trace),
    ):
        assert anatomy.receptive_field(suspect, EXAMPLE) is None
