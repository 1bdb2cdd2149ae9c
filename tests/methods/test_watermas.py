"""WaterMAS: marks that training cannot move, and a loss that is sharp around them."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from bench import metrics, run, stages
from bench.errors import ConfigError
from bench.models import weights
from bench.store.keys import load_key
from bench.types import Key
from methods import _positions as places
from methods import watermas
from methods.watermas import Draws, Marks
from tests.helpers import config, tiny


def values(x, model, key) -> torch.Tensor:
    """The marked weights, in the order of the message."""
    return torch.stack([model.get_parameter(key.where[i]).detach().reshape(-1)[j] for i, j in key.secret["positions"]])


def test_marked_weights_keep_their_exact_values_through_training(marked):
    # AdamW with weight decay, batch normalisation and hundreds of steps: not one bit of one float moved.
    x, model, key = marked("watermas")
    start = stages.fresh(x)
    held = Marks.of(start, key, x.method.amplitude, torch.device("cpu"))
    untouched = {name: start.get_parameter(name).detach().clone() for name in held.layers}
    for name, (where, kept, spread) in held.layers.items():
        now = model.get_parameter(name).detach().reshape(-1)
        assert torch.equal(now[where], kept)
        assert (kept.abs() >= x.method.amplitude * spread * (1 - 1e-6)).all()
        others = torch.ones(len(now), dtype=torch.bool)
        others[where] = False
        assert (now[others] != untouched[name].reshape(-1)[others]).float().mean() > 0.99
    assert ((values(x, model, key) > 0) == key.message).all()


def repeats(weight: torch.Tensor) -> int:
    """How often the most frequent magnitude of a weight is there."""
    return int(weight.detach().abs().reshape(-1).unique(return_counts=True)[1].max())


@pytest.mark.parametrize("amplitude", [1.0, 3.0])
def test_no_magnitude_gives_a_marked_weight_away(marked, amplitude):
    # One magnitude for all raised weights would be the key, for anybody to read.
    x, _, key = marked("watermas")
    start = stages.fresh(x)
    plain = {name: repeats(w) for name, w in weights.weights(start).items()}
    Marks.of(start, key, amplitude, torch.device("cpu")).restore(start)
    assert all(repeats(w) <= plain[name] for name, w in weights.weights(start).items())


def test_marks_are_as_large_as_their_layer_is_where_it_is_large():
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"layer": torch.nn.Linear(200, 300)})
    torch.nn.init.normal_(net["layer"].weight, std=0.05)
    before = net["layer"].weight.detach().abs().reshape(-1).clone()
    positions = torch.stack([torch.zeros(2000, dtype=torch.long), torch.randperm(60_000)[:2000]], 1)
    key = Key(torch.rand(2000) < 0.5, {"positions": positions}, ("layer.weight",))
    where, values, spread = Marks.of(net, key, 1.0, torch.device("cpu")).layers["layer.weight"]
    again = Marks.of(net, key, 1.0, torch.device("cpu")).layers["layer.weight"][1]
    assert torch.equal(values, again)
    assert values.abs().min() >= spread
    assert torch.equal(values > 0, key.message)
    large = before[where] >= spread
    assert torch.equal(values.abs()[large], before[where][large])
    assert not torch.isin(values.abs()[~large], before).any()
    # The same distribution: two samples' Kolmogorov-Smirnov distance, whose 0.1% bound is 1.95 sqrt(1/n + 1/m).
    tail, drawn = before[before >= spread], values.abs()[~large]
    apart = stats.ks_2samp(tail.numpy(), drawn.numpy()).statistic
    assert apart < 1.95 * (1 / len(tail) + 1 / len(drawn)) ** 0.5


def test_a_layer_with_nothing_that_large_gets_the_tail_of_a_normal_distribution():
    # Drawn uniformly a weight ends at 1.73 standard deviations; a tail beyond 40 has no probability left in a float.
    for amplitude in (3.0, 40.0):
        flat = torch.linspace(-1, 1, 5001)
        made = watermas.tail(flat.abs(), amplitude * flat.std(), flat.std(), 500, np.random.default_rng(0))
        assert made.dtype == flat.dtype
        assert (made >= amplitude * flat.std()).all()
        assert len(made.unique()) == 500
        # Mills: the excess over a standard deviations has a mean between 1 / (a + 2 / a) and 1 / a of them.
        excess = float((made / flat.std()).mean()) - amplitude
        assert 0.85 / (amplitude + 2 / amplitude) < excess < 1.15 / amplitude


def test_sgd_with_momentum_and_decay_cannot_move_them_either(results):
    words = ("train.optimizer=sgd", "train.lr=0.05", "train.weight_decay=0.01", "train.epochs=1")
    x = run.prepare(tiny(results, "watermas", "none", *words))
    entry = stages.mark(x)
    key, model = load_key(entry.path / "key.safetensors"), stages.load_weights(stages.skeleton(x), entry.path)
    held = Marks.of(stages.fresh(x), key, x.method.amplitude, torch.device("cpu"))
    for name, (where, kept, _) in held.layers.items():
        assert torch.equal(model.get_parameter(name).detach().reshape(-1)[where], kept)


def test_neither_stem_nor_head_nor_norms_are_marked(marked):
    x, model, key = marked("watermas")
    everything, inner = list(weights.weights(model)), list(weights.candidates(model))
    assert set(key.where) == set(inner[1:])
    assert everything[0] not in key.where
    assert x.task.head(model) + ".weight" not in key.where
    assert len({tuple(p) for p in key.secret["positions"].tolist()}) == key.n_bits


def divergence(x, model, weights: dict[str, torch.Tensor]) -> float:
    images, _ = next(x.task.batches("test", 256))
    with torch.no_grad():
        return float(x.task.divergence(model(images), torch.func.functional_call(model, weights, (images,))))


def ratio(x, results) -> float:
    """Divergence of zeroing the marked weights over that of zeroing equally many, equally large, random ones."""
    entry = stages.mark(x)
    key, model = load_key(entry.path / "key.safetensors"), stages.load_weights(stages.skeleton(x), entry.path)
    draw = np.random.default_rng(3)
    out = []
    for positions in (key, x.method.keygen(model, draw, x.task)):
        marks = Marks.of(model, positions, 1e-9, torch.device("cpu"))
        size = Marks.of(model, key, 1e-9, torch.device("cpu"))
        changed = {}
        for name, (where, _, _) in marks.layers.items():
            weight = model.get_parameter(name).detach().clone()
            # As large as the marked ones of that layer are.
            usual = size.layers[name][1].abs().mean() if name in size.layers else weight.std()
            weight.view(-1)[where] -= weight.view(-1)[where].sign() * usual
            changed[name] = weight
        out.append(divergence(x, model, changed))
    return out[0] / out[1]


@pytest.mark.slow
@pytest.mark.quick
def test_the_loss_is_sharper_around_marked_weights_than_around_others(results):
    small = ("method.n_bits=512", "method.every=1", "method.sharpness=0.1")
    sharp = ratio(run.prepare(tiny(results, "watermas", "none", *small)), results)
    plain = ratio(run.prepare(tiny(results, "watermas", "none", "method.n_bits=512", "method.sharpness=0")), results)
    assert sharp > 3
    assert sharp > 3 * plain


def test_the_second_pass_leaves_no_trace_in_the_statistics(results):
    x = run.prepare(tiny(results, "watermas", "none", "method.every=1", "train.epochs=1"))
    model = stages.load_weights(stages.skeleton(x), stages.mark(x).path)
    steps = x.task.size("owner") // x.train.batch_size
    counts = {int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {steps}


def test_dropout_does_not_pass_for_sharpness(results):
    # With marks that are left as they are, both passes must give the same outputs, dropout and all.
    x = run.prepare(tiny(results, "watermas", "none", "+model.kwargs.drop_rate=0.5", "method.every=1"))
    model = stages.skeleton(x).train()
    key = x.method.keygen(model, np.random.default_rng(0), x.task)
    marks = Marks.of(model, key, 1.0, torch.device("cpu"))
    still = Marks({name: (w, 0 * v, 0 * s) for name, (w, v, s) in marks.layers.items()})
    seen = []
    task = replace_divergence(x.task.view("owner"), seen)
    loss = x.method._sharpened(still, task, stages.owner_fit(x), Draws.seeded(0, torch.device("cpu")))
    loss(model, next(x.task.batches("owner", 16)))
    assert seen == [pytest.approx(0, abs=1e-6)]
    assert x.task.divergence(*(model(next(x.task.batches("owner", 16))[0]) for _ in range(2))) > 1e-4


def replace_divergence(task, seen: list):
    class Spy(type(task)):
        def divergence(self, outputs, others):
            value = super().divergence(outputs, others)
            seen.append(float(value.detach()))
            return value

    spy = replace(task)
    object.__setattr__(spy, "__class__", Spy)
    return spy


def test_a_weight_of_zero_is_half_an_error(marked):
    x, model, key = marked("watermas")
    import copy

    pruned = copy.deepcopy(model)
    for name in key.where:
        pruned.get_parameter(name).data.zero_()
    assert metrics.ber(x.method.extract(pruned, key, x.task), key.message) == 0.5


def test_anyone_reads_the_bits_with_numpy(marked):
    _, model, key = marked("watermas")
    state = {name: w.numpy() for name, w in model.state_dict().items()}
    bits = [state[key.where[i]].reshape(-1)[j] > 0 for i, j in key.secret["positions"].numpy()]
    assert (np.array(bits) == key.message.numpy()).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_positions_split_by_layer_and_back(sizes, data):
    total = sum(sizes)
    flat = np.array(data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=20)))
    layer, place = places.split(flat, np.array(sizes)).T
    assert (np.concatenate([[0], np.cumsum(sizes)])[layer] + place == flat).all()
    assert (place < np.array(sizes)[layer]).all()


@given(st.integers(0, 2**32), st.integers(1, 64))
def test_bound_messages_and_positions_are_the_commitments_alone(number, n):
    seed = np.random.default_rng(number).integers(0, 256, 32).astype(np.uint8)
    names, sizes = ["a", "b"], np.array([6_000, 4_000])
    message, places = watermas.bound(seed, names, sizes, n)
    assert len(set(places.tolist())) == n == len(message)
    assert (watermas.bound(seed, names, sizes, n)[1] == places).all()
    for other in ((["a", "c"], sizes), (names, sizes[::-1].copy())):
        assert (watermas.bound(seed, *other, n)[1] != places).any()


def test_commitment_pins_message_positions_and_layers(marked):
    x, model, _ = marked("watermas")
    method = replace(x.method, binding="hash")
    key = method.keygen(model, np.random.default_rng(0), None)
    assert method.accepts(key)
    assert 0.2 < key.message.float().mean() < 0.8
    for change in (
        {"positions": key.secret["positions"].flip(0)},
        {"seed": key.secret["seed"].flip(0)},
        {"sizes": key.secret["sizes"].flip(0)},
    ):
        assert not method.accepts(Key(key.message, {**key.secret, **change}, key.where))
    assert not method.accepts(Key(~key.message, key.secret, key.where))
    assert not method.accepts(Key(key.message, key.secret, key.where[::-1]))


def test_channels_last_weights_are_written_in_their_own_order():
    net = nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    where, new = torch.tensor([0, 5, 100]), torch.tensor([7.0, 8.0, 9.0])
    weights.write(net, "weight", where, new)
    weights.write(other, "weight", where, new)
    assert torch.equal(net.weight, other.weight)
    assert net.weight.reshape(-1)[where].tolist() == [7, 8, 9]


def test_what_cannot_be_is_said(results):
    from bench import spec

    for word, said in (("amplitude=0", "above 0"), ("situation=distill", "scratch"), ("every=0", "every")):
        with pytest.raises(ConfigError, match=said):
            spec.build(config("method=watermas", f"method.{word}").method, "method")
    x = run.prepare(tiny(results, "watermas", "none", "method.n_bits=10000000"))
    with pytest.raises(ConfigError, match=r"weights for method\.n_bits=10000000"):
        x.method.keygen(stages.fresh(x), np.random.default_rng(0), x.task)
    x = run.prepare(tiny(results, "watermas", "none", "method.layer=layr4*"))
    with pytest.raises(ConfigError, match="matches no convolution"):
        x.method.keygen(stages.fresh(x), np.random.default_rng(0), x.task)
