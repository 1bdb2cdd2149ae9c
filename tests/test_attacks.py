"""What each attack does to the weights, and what it may not do."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from attacks.forge import flipped, learned
from attacks.quantize import quantized
from bench import metrics, run, spec
from bench.train import Fit
from bench.types import ConfigError, Victim
from methods import layers
from tests.conftest import config


def victim(x, model, key, **more) -> Victim:
    return Victim(model, x.method, x.task.view("attacker"), **more)


def fit(x) -> Fit:
    return Fit(x.train, 3, may_diverge=True)


def attack(name: str, *overrides: str):
    return spec.build(config(f"attack={name}", *overrides).attack, "attack")


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: w.detach().clone() for k, w in layers.weights(model).items()}


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("scope", ["global", "layer", "marked"])
def test_prune_zeroes_exactly_the_stated_fraction_in_scope(marked, criterion, scope):
    x, model, key = marked("uchida")
    before, state = weights_of(model), copy.deepcopy(model.state_dict())
    it = attack(
        "prune", "attack.ratios=[0.25,0.6]", f"attack.criterion={criterion}", f"attack.scope={scope}",
        "attack.knows=[weights,layer]",
    )  # fmt: skip
    for snapshot in it.run(victim(x, model, key, where=key.where), np.random.default_rng(0), fit(x)):
        after = weights_of(snapshot.model)
        zeros = {k: int((after[k] == 0).sum()) for k in after}
        inside = set(key.where) if scope == "marked" else set(after)
        total = sum(after[k].numel() for k in inside)
        if scope == "layer":
            assert all(zeros[k] == round(snapshot.strength * after[k].numel()) for k in inside)
        else:
            assert sum(zeros[k] for k in inside) == round(snapshot.strength * total)
        for k in after:
            kept = after[k] != 0
            assert torch.equal(after[k][kept], before[k][kept])
        if criterion == "magnitude" and scope == "global":
            gone = torch.cat([before[k][after[k] == 0].abs() for k in after])
            left = torch.cat([before[k][after[k] != 0].abs() for k in after])
            assert gone.max() <= left.min()
        others = {k: v for k, v in snapshot.model.state_dict().items() if k not in inside}
        assert all(torch.equal(v, state[k]) for k, v in others.items())


def test_prune_keeps_zeros_through_finetuning(marked):
    x, model, key = marked("uchida")
    it = attack("prune", "attack.ratios=[0.5]", "attack.finetune_after=1", "attack.data=attacker")
    (snapshot,) = it.run(victim(x, model, key), np.random.default_rng(0), fit(x))
    after, before = weights_of(snapshot.model), weights_of(model)
    total = sum(w.numel() for w in after.values())
    assert sum(int((w == 0).sum()) for w in after.values()) == pytest.approx(total / 2, abs=1)
    assert any((after[k] != before[k])[after[k] != 0].any() for k in after)  # and it did train


def test_attacks_that_train_must_state_their_data():
    for words in (
        ["prune", "attack.finetune_after=1"],
        ["finetune", "attack.data=none"],
        ["overwrite", "attack.data=none"],
    ):
        with pytest.raises(ConfigError, match=r"attack\.data=attacker"):
            attack(*words)


def test_prune_of_the_marked_layer_needs_the_privilege(marked):
    with pytest.raises(ConfigError, match="knows"):
        attack("prune", "attack.scope=marked")
    x, model, key = marked("uchida")
    it = attack("prune", "attack.scope=marked", "attack.knows=[weights,layer]")
    assert it.skip(victim(x, model, key)) == "no marked layer to prune"


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_levels_error_and_symmetry(bits, per_channel):
    torch.manual_seed(0)
    w = torch.randn(6, 5, 3, 3)
    q = quantized(w, bits, per_channel)
    groups = list(q) if per_channel else [q]
    assert all(len(g.unique()) <= 2**bits - 1 for g in groups)
    largest = w.abs().amax((1, 2, 3), keepdim=True) if per_channel else w.abs().max()
    step = largest / (2 ** (bits - 1) - 1)
    assert ((q - w).abs() <= step / 2 * (1 + 1e-5)).all()
    torch.testing.assert_close(quantized(-w, bits, per_channel), -q)
    assert quantized(torch.zeros(3, 4), bits, per_channel).abs().max() == 0


def test_quantize_covers_its_grid_and_dynamic_int8(marked):
    x, model, key = marked("uchida")
    snapshots = list(attack("quantize").run(victim(x, model, key), np.random.default_rng(0), fit(x)))
    assert [(s.knob, s.strength) for s in snapshots] == [
        *[("bits/tensor", b) for b in (8, 6, 4, 3, 2)],
        *[("bits/channel", b) for b in (8, 6, 4, 3, 2)],
        ("bits/dynamic-int8", 8),
    ]
    last = snapshots[-1]
    assert not last.skipped
    assert x.task.utility(last.model) == pytest.approx(x.task.utility(model), abs=3)
    head = x.task.head(model)
    read = layers.read(last.model, f"{head}.weight")  # dequantised from int8
    exact = model.get_submodule(head).weight
    assert 0 < (read - exact).abs().max() < 2 * exact.abs().max() / 127


@pytest.mark.parametrize("mode", ["ftal", "ftll", "rtal", "rtll"])
def test_finetune_changes_only_what_its_mode_names(marked, mode):
    x, model, key = marked("uchida")
    before, head = copy.deepcopy(model.state_dict()), x.task.head(model)
    it = attack("finetune", f"attack.mode={mode}", "attack.epochs=2")
    snapshots = []
    for s in it.run(victim(x, model, key), np.random.default_rng(0), fit(x)):
        snapshots.append((s.knob, s.strength))
        after = s.model.state_dict()
    assert snapshots == [("epoch", 1), ("epoch", 2)]
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert f"{head}.weight" in moved
    inside = {k for k in after if k.startswith(f"{head}.")}
    if mode.endswith("ll"):
        assert moved <= inside
    else:
        assert moved - inside  # normalisation statistics too
        assert key.where[0] in moved
    if mode.startswith("rt"):
        start = before[f"{head}.weight"]
        assert torch.corrcoef(torch.stack([start.flatten(), after[f"{head}.weight"].flatten()]))[0, 1] < 0.9


@pytest.mark.slow
@pytest.mark.quick
def test_finetune_on_other_data_gets_a_new_head_and_no_damage(results, tmp_path):
    from PIL import Image

    from tests.conftest import tiny

    # Two classes that any network tells apart: dark and bright noise.
    draws = np.random.default_rng(0)
    for part, n in (("train", 200), ("test", 40)):
        for low, name in ((0, "dark"), (128, "bright")):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = draws.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "d" / part / name / f"{i}.png")
    words = [
        "data@attack.transfer=imagefolder",
        f"attack.transfer.path={tmp_path / 'd'}",
        "attack.transfer.label=light",
    ]
    cfg = tiny(results, "uchida", "finetune", *words, "attack.epochs=3")
    x = run.prepare(cfg)
    assert x.other.view("attacker").size("attacker") == 360  # all but validation
    rows = run.run(cfg).rows
    last = rows[-1]
    assert last.utility_name == "top1@light"
    assert last.utility_victim is None
    assert last.utility > 85  # of two classes, 50 is chance
    assert metrics.verdict(vars(last), "removal", 5.0) in ("survived", "lost")
    # the same content elsewhere is the same run, other content is not
    (tmp_path / "d").rename(tmp_path / "e")
    moved = tiny(results, "uchida", "finetune", words[0], f"attack.transfer.path={tmp_path / 'e'}", "attack.epochs=3")
    assert run.prepare(moved).hashes() == x.hashes()
    (tmp_path / "e" / "train" / "dark" / "0.png").unlink()
    assert run.prepare(moved).hashes() != x.hashes()


@pytest.mark.slow
@pytest.mark.quick
def test_overwrite_reaches_its_own_mark_with_its_own_key(results):
    from tests.conftest import tiny

    rows = run.run(tiny(results, "uchida", "overwrite", "attack.epochs=20")).rows
    points = [r for r in rows if r.knob.startswith("lambda")]
    assert [(r.knob, r.strength) for r in points] == [("lambda factor, lr 0.003", f) for f in (1, 10)]
    assert any(r.claim_ber == 0 and r.claim_detected for r in points)


def test_flipped_signs_forge_a_linear_reader(marked):
    x, model, _ = marked("uchida")
    key = x.method.keygen(model, np.random.default_rng(9))
    assert metrics.ber(x.method.extract(model, key, None), key.message) > 0.2
    claim = flipped(model, x.method, key)
    assert metrics.ber(x.method.extract(model, claim, None), claim.message) == 0
    assert torch.equal(claim.secret["projection"].abs(), key.secret["projection"].abs())
    assert x.method.accepts(claim)
    bound = replace(x.method, binding="hash")
    key = bound.keygen(model, np.random.default_rng(9))
    claim = flipped(model, bound, key)
    assert metrics.ber(bound.extract(model, claim, None), claim.message) == 0
    assert not bound.accepts(claim)


@pytest.mark.parametrize("k", [32, 64])
def test_flipped_signs_find_the_dimension_of_the_bits(k):
    """Also where the secret is square and both dimensions have n entries."""
    from tests.test_methods import NEURALMARK, net

    method, model = replace(NEURALMARK, k=k, n_bits=32, binding=False), net()
    key = method.keygen(model, np.random.default_rng(1))
    claim = flipped(model, method, key)
    assert metrics.ber(method.extract(model, claim, None), key.message) == 0


def test_torchs_attention_is_pruned_and_quantised_whole():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert "self_attn.in_proj_weight" in layers.weights(layer)
    assert sum(w.numel() for w in layers.weights(layer).values()) == sum(
        p.numel() for p in layer.parameters() if p.dim() > 1
    )


def test_flipped_signs_break_the_hash_of_neuralmark(marked):
    x, model, _ = marked("neuralmark")
    claim = flipped(model, x.method, x.method.keygen(model, np.random.default_rng(9)))
    assert metrics.ber(x.method.extract(model, claim, None), claim.message) == 0
    assert not x.method.accepts(claim)


@pytest.mark.parametrize("method", ["uchida", "neuralmark"])
def test_learned_secrets_read_any_message_and_leave_no_gradient(marked, method):
    x, model, _ = marked(method)
    key = x.method.keygen(model, np.random.default_rng(9))
    ((steps, claim),) = learned(model, x.method, key, [50], 0.1)
    assert steps == 50
    assert metrics.ber(x.method.extract(model, claim, None), key.message) == 0
    assert torch.equal(claim.message, key.message)
    assert x.method.accepts(claim) == (method == "uchida")
    assert all(p.grad is None for p in model.parameters())


def test_forge_rows_say_what_binding_is_worth(results):
    from tests.conftest import tiny

    rows = {m: run.run(tiny(results, m, "forge")).rows for m in ("uchida", "neuralmark")}
    flip = {m: next(r for r in rows[m] if r.knob == "flip") for m in rows}
    assert flip["uchida"].claim_detected
    assert not flip["neuralmark"].claim_detected
    # the row still shows that it would have passed without the check
    assert flip["neuralmark"].claim_ber == 0
    assert metrics.is_detected(flip["neuralmark"].claim_log10_p, 1e-9)
    for m in rows:
        tries = [r for r in rows[m] if r.knob == "tries"]
        assert [r.strength for r in tries] == [1, 20]
        assert tries[1].claim_ber <= tries[0].claim_ber
        assert not tries[1].claim_detected
        assert all(r.detected and r.utility == r.utility_victim for r in tries)


def test_attackers_randomness_is_its_own(results):
    from tests.conftest import tiny

    def rows(*more: str) -> list:
        cfg = tiny(results, "uchida", "prune", "attack.criterion=random", "force=true", *more)
        return [(r.knob, r.strength, r.ber, r.utility) for r in run.run(cfg).rows]

    assert rows() == rows()
    assert rows("attack.seed=1") != rows()
    assert spec.derive(0, "attack", "prune") != spec.derive(0, "owner", "key")
