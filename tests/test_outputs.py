"""Attacks on outputs: what is done to pictures, surrogates' losses and pairs, residuals; what a service shows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from bench import outputs, run, spec, threat
from bench.pictures import seen
from bench.types import Victim
from tests.conftest import config
from tests.test_restoration import SIZES, folder, picture, words  # noqa: F401 (a fixture)

# What is done to outputs


def test_changes_of_outputs_are_what_they_are_called():
    torch.manual_seed(0)
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 255, (32, 32), mode="bicubic").clamp(0, 255)
    pictures = pictures.round()
    for kind, none in (("noise", 0), ("blur", 0), ("resize", 1), ("shift", 0), ("brightness", 0)):
        assert torch.equal(outputs.processed(pictures, kind, none, 0), pictures), kind
    assert torch.equal(outputs.processed(pictures, "none", 3, 0), pictures)
    noisy = outputs.processed(torch.full((8, 3, 32, 32), 128.0), "noise", 5, 7)
    assert float(noisy.std()) == pytest.approx(5, rel=0.05)
    assert torch.equal(noisy[0], noisy[1])  # equal pictures get equal noise, in any batch
    assert torch.equal(noisy[:2], outputs.processed(torch.full((2, 3, 32, 32), 128.0), "noise", 5, 7))
    assert not torch.equal(noisy, outputs.processed(torch.full((8, 3, 32, 32), 128.0), "noise", 5, 8))
    a, b = (outputs.processed(pictures, "noise", 5, 7) - pictures for pictures in (pictures, pictures.flip(3)))
    assert not torch.equal(a[0], b[0])
    anew = [outputs.processed(pictures, "noise", 5, None) for _ in range(2)]
    assert not torch.equal(*anew)
    moved = outputs.processed(pictures, "shift", 2, 0)
    assert torch.equal(moved[..., 2:], pictures[..., :-2])
    assert torch.equal(moved[..., 0], pictures[..., 0])
    errors = [(outputs.processed(pictures, "jpeg", q, 0) - pictures).square().mean() for q in (95, 50, 10)]
    assert errors[0] < errors[1] < errors[2] < 300
    for kind, strength in (("jpeg", 75), ("noise", 9), ("blur", 1), ("blur", 10), ("resize", 0.5), ("brightness", 200)):
        changed = outputs.processed(pictures, kind, strength, 0)
        assert changed.shape == pictures.shape
        assert torch.equal(changed, changed.round().clamp(0, 255))
        assert not torch.equal(changed, pictures)


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_both_pictures_of_a_pair_are_augmented_alike(augment):
    attack = spec.build(config("task=restoration", "attack=surrogate", f"attack.augment={augment}").attack, "attack")
    torch.manual_seed(3)
    images = torch.rand(16, 3, 24, 24)
    one, two = attack._augmented(images, 1 - images)
    assert torch.equal(one, 1 - two)
    assert torch.equal(one, images) is (augment == "none")
    assert one.shape == images.shape
    if augment == "flip":
        kept = (one == images).flatten(1).all(1)
        assert 0 < int(kept.sum()) < 16
        assert torch.equal(one[~kept], images[~kept].flip(3))


@pytest.mark.parametrize("loss", ["l2", "l1", "gan", "perceptual"])
def test_surrogates_losses_fall_towards_the_target(loss):
    attack = spec.build(config("task=restoration", "attack=surrogate").attack, "attack")
    torch.manual_seed(0)
    wanted = torch.rand(2, 3, 16, 16) * 255
    distance, more = attack._distance(loss, 5, wanted)
    for p in (p for net in more for p in net.parameters()):
        p.data.zero_()  # a discriminator without an opinion
    far, near = (distance(wanted + much * torch.randn_like(wanted), wanted).item() for much in (40, 1))
    assert near < far
    assert len(more) == (loss == "gan")
    if loss == "perceptual":
        assert float(distance(wanted, wanted)) == 0
        again, _ = attack._distance(loss, 5, wanted)
        assert float(again(wanted + 3, wanted)) == float(distance(wanted + 3, wanted))


def test_a_file_of_vgg_16_is_torchvisions(tmp_path):
    """Names and shapes from torchvision itself, of a network that is never filled."""
    with torch.device("meta"):
        names = torchvision.models.vgg16(weights=None).state_dict()
    weights = {k: torch.randn(x.shape) for k, x in names.items() if k in [f"features.{i}.weight" for i in (0, 2, 5, 7)]}
    weights |= {k.replace("weight", "bias"): torch.randn(len(x)) for k, x in weights.items()}
    save_file(weights, tmp_path / "vgg.safetensors")
    words_ = ("task=restoration", "attack=surrogate", f"attack.vgg={tmp_path}/vgg.safetensors")
    features = spec.build(config(*words_).attack, "attack")._features(0)
    assert {f"features.{k}": x.tolist() for k, x in features.state_dict().items()} == {
        k: x.tolist() for k, x in weights.items()
    }
    whole = [type(layer).__name__ for layer in torchvision.models.vgg.make_layers([64, 64, "M", 128, 128])]
    assert [type(layer).__name__ for layer in features] == whole
    assert [type(features[i - 1]).__name__ for i in (3, 8)] == ["Conv2d", "Conv2d"]  # relu1_2 and relu2_2 are read


def test_a_trace_that_is_the_same_everywhere_is_subtracted_exactly():
    attack = spec.build(config("task=restoration", "attack=residual", "attack.pairs=[8]").attack, "attack")
    trace, pictures = torch.zeros(3, 16, 16), torch.randint(20, 230, (40, 3, 16, 16)).to(torch.uint8)
    trace[:, 4:8, 4:8] = 9

    class Marked(nn.Module):
        input_mean = torch.zeros(1)

        def forward(self, images):
            return images.float() + trace

    def batches(split, size, seed):
        return iter([(pictures[:5], pictures[:5]), (pictures[5:], pictures[5:])])

    victim = Victim(Marked(), None, SimpleNamespace(train="attacker", batches=batches))
    snapshot = next(attack.run(victim, np.random.default_rng(0), None))
    assert torch.equal(snapshot.model(pictures), pictures.float())
    assert not torch.equal(victim.model(pictures), pictures.float())


@pytest.mark.parametrize("attack", ["postprocess", "residual"])
def test_no_change_of_outputs_touches_what_is_read_from_weights(folder, results, attack):  # noqa: F811
    x = run.prepare(config(*words(folder), "method=uchida", f"attack={attack}", f"results_dir={results}"))
    victim = Victim(run.fresh(x), x.method, x.task.view("attacker"))
    assert x.attack.skip(victim) == "the mark is read from weights, which no change of outputs touches"


def test_attacks_on_outputs_state_that_they_need_no_weights():
    for name in ("surrogate", "postprocess", "residual", "distill"):
        attack = spec.build(config("task=restoration", f"attack={name}").attack, "attack")
        assert attack.needs == ("outputs",)
        assert attack.knows == ["outputs"]
    twin = spec.build(config("task=restoration", "attack=surrogate").attack, "attack").twin
    assert twin.surrogates == ["same/l2"]
    assert twin.twin is None


def test_a_service_shows_nothing_but_pictures(results, folder):  # noqa: F811
    small = ("method=boxfree", "method.depth=2", "method.n_bits=16", "attack=surrogate", f"results_dir={results}")
    x = run.prepare(config(*words(folder), *small))
    model = run.skeleton(x)
    robbed = threat.stolen(x, model, x.method.keygen(model, np.random.default_rng(0)))
    assert isinstance(robbed.model, threat.Service)
    assert [*robbed.model.state_dict()] == ["input_mean"]
    assert [*robbed.model.modules()] == [robbed.model]
    assert not any(isinstance(value, nn.Module) for value in vars(robbed.model).values())
    assert (robbed.key, robbed.where) == (None, None)
    images = x.task.example(3) + torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(robbed.model(images), seen(model.eval()(images)))
    for split in ("owner", "test"):
        with pytest.raises(PermissionError):
            next(robbed.task.batches(split, 4))
    opened = run.prepare(config(*words(folder), *small, "method.absorbed=true"))
    assert not isinstance(threat.stolen(opened, model, None).model, threat.Service)
