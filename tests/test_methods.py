"""The mathematics of the methods: what the papers define, to float precision, and the traps of public code."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from bench import metrics, run, spec
from bench.types import ConfigError, Key
from methods import layers
from methods.neuralmark import Neuralmark, filtered, hashed
from methods.uchida import Uchida, bound_projection

UCHIDA = Uchida(n_bits=32, projection="random", lambda_=0.01, situation="scratch", layer=None, binding="none")
NEURALMARK = Neuralmark(
    n_bits=32, k=16, rounds=2, pool=True, binding=True, lambda_=1.0, situation="scratch", layer=None
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"stage1": nn.Conv2d(3, 16, 3), "stage2": nn.Conv2d(16, 24, 3), "head": nn.Linear(24, 10)})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_uchida_logits_are_the_papers():
    model, key = net(), UCHIDA.keygen(net(), rng())
    w = model["stage2"].weight.detach().numpy()
    by_hand = np.array([sum(x[i] * w[:, c, r, s].mean() for i, (c, r, s) in enumerate(np.ndindex(16, 3, 3)))
                        for x in key.secret["projection"].numpy()])  # fmt: skip
    assert key.where == ("stage2.weight",)
    np.testing.assert_allclose(UCHIDA.logits(model, key).detach().numpy(), by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("projection", ["direct", "diff"])
def test_uchida_sparse_projections(projection):
    x = replace(UCHIDA, projection=projection).keygen(net(), rng()).secret["projection"]
    assert (x == 1).sum(1).eq(1).all()
    assert (x == -1).sum(1).eq(1 if projection == "diff" else 0).all()
    assert (x != 0).sum(0).max() == 1  # distinct columns


def test_uchida_capacity_is_said():
    with pytest.raises(ConfigError, match=r"needs 200 .* carries 144"):
        replace(UCHIDA, n_bits=200).keygen(net(), rng())
    with pytest.raises(ConfigError, match=r"needs 160 .* carries 144"):
        replace(UCHIDA, n_bits=80, projection="diff").keygen(net(), rng())
    assert replace(UCHIDA, n_bits=144, projection="direct").keygen(net(), rng()).n_bits == 144


def test_uchida_binding_ties_projection_to_message():
    method = replace(UCHIDA, binding="hash")
    key = method.keygen(net(), rng())
    assert method.accepts(key)
    other = key.message.clone()
    other[0] = ~other[0]
    assert not method.accepts(replace(key, message=other))
    flipped = key.secret["projection"] * torch.where(torch.arange(32) == 3, -1.0, 1.0)[:, None]
    assert not method.accepts(replace(key, secret={**key.secret, "projection": flipped}))
    x = bound_projection(np.zeros(32, np.uint8), np.zeros(64, bool), 5000).numpy()
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs((np.abs(x) < 0.6744898).mean() - 0.5) < 0.005  # the median of |N(0, 1)|


def test_neuralmark_message_is_the_hash_of_the_matrix():
    matrix = rng().standard_normal((512, 256), dtype=np.float32)
    stream = hashlib.shake_256(matrix.astype("<f4").tobytes(order="C")).digest(32)
    bits = [(byte >> (7 - i)) & 1 for byte in stream for i in range(8)]
    assert hashed(matrix).tolist() == [bool(b) for b in bits]
    assert len(hashed(matrix[:, :100])) == 100


def test_neuralmark_published_length_arithmetic():
    # METHODS: 589,824 weights, n = 256: each round keeps ones/n of the length cut to a multiple of n.
    key = replace(NEURALMARK, n_bits=256, k=512, rounds=4, layer="*").keygen(
        nn.ModuleDict({"stage": nn.Conv2d(256, 256, 3), "head": nn.Linear(2, 2)}), rng()
    )
    ones, size = int(key.message.sum()), 589_824
    for _ in range(4):
        size = size // 256 * ones
    assert len(filtered(torch.arange(589_824), key.message, 4)) == size


def reference_logits(weight: np.ndarray, matrix: np.ndarray, message: np.ndarray, k: int, rounds: int) -> np.ndarray:
    """NeuralMark's extraction, position by position."""
    values = list(weight.reshape(-1))
    for _ in range(rounds):
        values = values[: len(values) // len(message) * len(message)]
        values = [v for i, v in enumerate(values) if message[i % len(message)]]
    values = values[: len(values) // k * k]
    z = np.array([np.mean(values[j::k]) for j in range(k)])
    return z @ matrix


def test_neuralmark_logits_are_the_papers_also_in_channels_last():
    model, key = net(), NEURALMARK.keygen(net(), rng())
    w = model["stage2"].weight.detach().numpy()
    expected = reference_logits(w, key.secret["matrix"].numpy(), key.message.numpy(), 16, 2)
    np.testing.assert_allclose(NEURALMARK.logits(model, key).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    read = NEURALMARK.reader(key, torch.device("cpu"))
    for _ in range(2):  # the first call finds the index set, the second uses it
        np.testing.assert_allclose(read(model["stage2"].weight).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    model.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(NEURALMARK.logits(model, key).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    fresh = NEURALMARK.reader(key, torch.device("cpu"))
    np.testing.assert_allclose(fresh(model["stage2"].weight).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_neuralmark_gradient_is_that_of_the_plain_formula():
    key = NEURALMARK.keygen(net(), rng())
    w1, w2 = (net()["stage2"].weight.detach().clone().requires_grad_() for _ in range(2))
    truth = key.message.float()
    bce = nn.functional.binary_cross_entropy_with_logits
    bce(NEURALMARK.reader(key, torch.device("cpu"))(w1), truth).backward()
    kept = w2.reshape(-1)
    for _ in range(2):
        kept = kept[: len(kept) // 32 * 32]
        kept = kept[key.message[torch.arange(len(kept)) % 32]]
    z = torch.stack([kept[: len(kept) // 16 * 16][j::16].mean() for j in range(16)])
    bce(z @ key.secret["matrix"], truth).backward()
    torch.testing.assert_close(w1.grad, w2.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("rounds", [1, 4])
def test_two_keys_share_few_filtered_weights(rounds):
    # METHODS, measured: 51% at R = 1, 6.1% at R = 4. What two filters of independent messages share is 2^-R.
    n, size = 256, 589_824
    draws = rng(3)
    sets = [
        set(filtered(torch.arange(size), torch.from_numpy(draws.integers(0, 2, n).astype(bool)), rounds).tolist())
        for _ in range(2)
    ]
    share = len(sets[0] & sets[1]) / len(sets[0])
    assert share == pytest.approx(2.0**-rounds, rel=0.25)


def test_neuralmark_refuses_a_small_layer_with_the_arithmetic():
    with pytest.raises(ConfigError, match=r"needs 16,384 weights \(k=512 x 2\^4 filter rounds x 2\).*carries 3,456"):
        replace(NEURALMARK, n_bits=256, k=512, rounds=4).keygen(net(), rng())


def test_neuralmark_without_filter_or_pool():
    plain = replace(NEURALMARK, rounds=0, pool=False)
    model, key = net(), plain.keygen(net(), rng())
    z = model["stage2"].weight.detach().reshape(-1)[:16]
    torch.testing.assert_close(plain.logits(model, key), z @ key.secret["matrix"])


def test_neuralmark_verification_recomputes_the_message():
    key = NEURALMARK.keygen(net(), rng())
    assert NEURALMARK.accepts(key)
    matrix = key.secret["matrix"].clone()
    matrix[0, 0] = torch.nextafter(matrix[0, 0], torch.tensor(9.0))  # one unit in the last place is enough
    assert not NEURALMARK.accepts(replace(key, secret={"matrix": matrix}))
    free = replace(NEURALMARK, binding=False)
    assert free.accepts(free.keygen(net(), rng()))


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_random_keys_match_half_of_a_hosts_bits(method):
    # The binomial null: 0.5 within 5 standard errors over all bits, and the spread of a binomial.
    model, draws = net(), rng(7)
    rates = [
        1 - metrics.ber(method.extract(model, key, None), key.message)
        for key in (method.keygen(model, draws) for _ in range(400))
    ]
    assert np.mean(rates) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(400 * 32))
    assert np.std(rates) == pytest.approx(0.5 / np.sqrt(32), rel=0.2)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK, replace(UCHIDA, binding="hash")])
def test_keys_come_from_their_generator_alone(method):
    model = net()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global generator is the point)
    first = method.keygen(model, rng(5))
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = method.keygen(model, rng(5))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert same_key(first, second)
    assert not same_key(first, method.keygen(model, rng(6)))


def same_key(a: Key, b: Key) -> bool:
    same = a.where == b.where and torch.equal(a.message, b.message) and a.secret.keys() == b.secret.keys()
    return same and all(torch.equal(a.secret[k], b.secret[k]) for k in a.secret)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_the_penalty_follows_the_weight(method):
    # The trap of public code: a tensor averaged once at construction, whose gradient never changes.
    model = net()
    key = method.keygen(model, rng())
    read = method.reader(key, torch.device("cpu"))
    w = model["stage2"].weight
    before = read(w).detach().clone()
    with torch.no_grad():
        w.mul_(-2)
    torch.testing.assert_close(read(w), -2 * before)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_extraction_draws_nothing_and_keeps_no_gradient(method):
    model = net()
    key = method.keygen(model, rng())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    soft = method.extract(model, key, None)
    assert not soft.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(soft, method.extract(model, key, None))
    assert soft.shape == (32,)
    assert ((soft >= 0) & (soft <= 1)).all()


def numpy_bits(method: str, weight: np.ndarray, key: dict[str, np.ndarray], k: int, rounds: int) -> np.ndarray:
    if method == "uchida":
        return key["projection"] @ weight.mean(0).reshape(-1) > 0
    return reference_logits(weight, key["matrix"], key["message"].astype(bool), k, rounds) > 0


@pytest.mark.parametrize("method", ["uchida", "neuralmark"])
def test_the_two_files_and_numpy_suffice_to_read_a_mark(marked, method):
    import json

    from safetensors.numpy import load_file

    x, _, _ = marked(method)
    folder = run.mark(x).path
    key, model = load_file(folder / "key.safetensors"), load_file(folder / "model.safetensors")
    with safe_open(folder / "key.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["method"] == method
    (name,) = json.loads(metadata["where"])
    bits = numpy_bits(method, model[name], key, x.cfg.method.get("k"), x.cfg.method.get("rounds"))
    assert (bits == key["message"].astype(bool)).all()


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("situation", ["finetune", "distill"])
def test_situations_start_from_the_host(marked, situation):
    x, model, key = marked("uchida", "none", f"method.situation={situation}")
    assert metrics.ber(x.method.extract(model, key, x.task), key.message) == 0
    host = run.load_weights(run.fresh(x), run.host(x).path)
    start = run.fresh(x)
    name = key.where[0]
    moved = (model.get_parameter(name) - host.get_parameter(name)).norm()
    assert moved < (model.get_parameter(name) - start.get_parameter(name)).norm()


def test_distillation_reads_no_labels(marked):
    x, _, _ = marked("uchida")
    task = x.task.view("owner")
    images, labels = next(task.batches("owner", 32, 0))
    a, b = run.fresh(x).eval(), run.load_weights(run.fresh(x), run.host(x).path)
    assert torch.equal(task.distill(a, b, (images, labels)), task.distill(a, b, (images, labels * 0 - 1)))


def test_layer_rule():
    model = net()
    assert layers.choose(model, None, torch.Tensor.numel, 100, "weights") == "stage2.weight"
    assert layers.choose(model, "stage1", torch.Tensor.numel, 100, "weights") == "stage1.weight"
    assert layers.choose(model, "stage*", torch.Tensor.numel, 100, "weights") == "stage2.weight"
    assert layers.choose(model, "head", torch.Tensor.numel, 100, "weights") == "head.weight"
    # the last stage lacks capacity: the one before is asked
    wide = nn.ModuleDict({"stage1": nn.Linear(64, 64), "stage2": nn.Linear(64, 8), "head": nn.Linear(8, 10)})
    assert layers.choose(wide, None, torch.Tensor.numel, 1000, "weights") == "stage1.weight"
    with pytest.raises(ConfigError, match=r"stagee1 matches no .* did you mean 'stage1'"):
        layers.choose(model, "stagee1", torch.Tensor.numel, 1, "weights")


def test_layer_rule_takes_the_first_of_equals_in_the_last_stage():
    import timm

    model = timm.create_model("resnet18", num_classes=10)
    assert layers.choose(model, None, torch.Tensor.numel, 16_384, "weights") == "layer4.0.conv2.weight"
    assert layers.stage("encoder.layers.encoder_layer_11.mlp.3.weight") == "encoder.layers.encoder_layer_11"


def test_names_agree_everywhere():
    from tests.conftest import ATTACKS, METHODS, config

    for group, names in (("method", METHODS), ("attack", ATTACKS)):
        for name in names:
            cls = spec.target(config(f"{group}={name}")[group], group)
            assert cls.__module__ == f"{group}s.{name}"
            assert cls.__name__.rstrip("_") == "".join(part.capitalize() for part in name.split("_"))
