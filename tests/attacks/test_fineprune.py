"""Fine-Pruning: the least active units, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attacks import fineprune
from bench import run, stages
from tests.helpers import changed, config, headed, snapshots


class Net(nn.Module):
    """Two layers, whose hidden units are told apart by their bias alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage1(x).relu())


def test_exactly_the_least_active_units_are_silenced():
    net = headed(Net())
    with torch.no_grad():
        net.stage1.weight.zero_().add_(0.01)
        net.stage1.bias.copy_(torch.tensor([3.0, 0.5, 4.0, 1.0, 5.0, 2.0]))
    found = fineprune.units(net, torch.ones(1, 3))
    assert found.reader == "head"

    class Data:
        train = "attacker"

        def batches(self, split, size):
            yield from ((torch.ones(n, 3),) for n in (4, 1))

        def inputs(self, batch):
            return batch[0]

    active = fineprune.activity(net, found.reader, Data(), 4)
    assert active == pytest.approx(np.array([3, 0.5, 4, 1, 5, 2]) + 0.03, abs=1e-6)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    found.silence(net, found.ranked(active)[:3])  # units 1, 3, 5
    gone = torch.tensor([False, True, False, True, False, True])
    for part, axis in (("stage1.weight", 0), ("stage1.bias", 0), ("head.weight", 1)):
        new, old = (p.detach().movedim(axis, 0) for p in (net.get_parameter(part), before[part]))
        assert (new[gone] == 0).all()
        assert torch.equal(new[~gone], old[~gone])
    assert torch.equal(net.head.bias, before["head.bias"])


@pytest.mark.parametrize(
    ("name", "reader", "count"), [("test_resnet", "fc", 96), ("test_vit", "blocks.5.mlp.fc2", 192)]
)
def test_units_are_those_of_the_last_stage(results, name, reader, count):
    chosen = ["method=none", "attack=none", "model=timm", f"model.name={name}"]
    x = run.prepare(config(*chosen, "device=cpu", f"results_dir={results}"))
    model = stages.fresh(x)
    found = fineprune.units(model, x.task.example(1))
    assert (found.reader, len(np.unique(found.columns))) == (reader, count)
    everything, last = [*found.places], {"test_resnet": ("layer4.", "fc."), "test_vit": ("blocks.5.mlp.",)}[name]
    assert everything
    assert all(part.startswith(last) for part in everything)
    # Without them the reader is given nothing at all.
    found.silence(model.eval(), np.unique(found.columns))
    assert (fineprune.activity(model, reader, x.task.view("attacker"), 64) == 0).all()


def test_silent_units_stay_silent_through_fine_tuning(marked):
    x, model, _ = marked("uchida", "fineprune", "attack.shares=[0.5]", "attack.epochs=1")
    made = {knob: m for knob, _, m in snapshots(x, model, None)}
    before, after = made["share"], made["share, tuned"]
    rows = before.layer4[0].conv2.weight.detach().flatten(1).eq(0).all(1)
    assert int(rows.sum()) == len(rows) // 2
    for part in ("layer4.0.conv2.weight", "layer4.0.bn2.weight", "layer4.0.bn2.bias"):
        assert (after.get_parameter(part)[rows] == 0).all()
    assert (after.fc.weight[:, rows] == 0).all()
    touched = {n.split(".")[0] for n, share in changed(model, before).items() if share}
    assert touched == {"layer4", "fc"}
    assert changed(before, after)["conv1.0.weight"] > 0.9
