"""Networks of text: ours and transformers' GPT-2; Conv1D, tied heads, heads of attention, low-rank changes."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from attacks._disguise import disguise, noise
from attacks._rewrite import rewrite
from bench import metrics, spec
from bench.errors import ConfigError
from bench.models import align, anatomy, lora, weights
from bench.models.gpt import Nano
from bench.models.tokens import Vocabulary
from bench.types import Key
from tests.helpers import NEURALMARK, UCHIDA, config, language, rng

IO = Vocabulary(300, 24)
SMALL = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 24}
NANO = Nano(label="gpt", checkpoint=None, width=64, layers=2, heads_=4, dropout=0.0, lora=None)
TOKENS = torch.randint(0, 300, (4, 24), generator=torch.Generator().manual_seed(3))


def gpt2(*more: str, io: Vocabulary = IO, **kwargs) -> nn.Module:
    pytest.importorskip("transformers")
    words = ["model=gpt2", "model.name=null", "model.weights=random", *more]
    words += [f"+model.kwargs.{k}={v}" for k, v in (SMALL | kwargs).items()]
    return vary(spec.build(config(*words).model, "model").build(io, 0).eval())


def vary(net: nn.Module) -> nn.Module:
    """No vector is constant, so that an exchange shows."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=draws))
    return net


def build(name: str) -> nn.Module:
    return gpt2() if name == "gpt2" else vary(NANO.build(IO, 0).eval())


def distance(a: nn.Module, b: nn.Module) -> float:
    with torch.no_grad():
        one, two = a(TOKENS), b(TOKENS)
    return float((one - two).abs().max() / one.abs().max())


def stored(net: nn.Module) -> nn.Module:
    """The same network as transformers has it, with its Conv1D."""
    from transformers.pytorch_utils import Conv1D

    found = copy.deepcopy(net)
    for name, part in [*found.named_modules()]:
        if isinstance(part, nn.Linear) and name != "lm_head":
            turned = Conv1D(part.out_features, part.in_features)
            turned.weight, turned.bias = nn.Parameter(part.weight.detach().t().contiguous()), part.bias
            found.set_submodule(name, turned)
    return found


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_where_marks_go(name):
    """Not into the head, which is the embedding; the MLP where c_attn is too narrow."""
    net = build(name)
    found = weights.candidates(net)
    assert len(found) == 8
    assert not any("lm_head" in n or "wte" in n for n in found)
    assert sum("lm_head" in n or "wte" in n for n in weights.weights(net)) == 1
    many = replace(UCHIDA, n_bits=100)
    (where,) = many.keygen(net, rng(), None).where
    assert where.endswith("h.1.mlp.c_proj.weight")
    narrow = replace(many, layer="*h.1.attn.c_attn")
    with pytest.raises(ConfigError, match=r"needs 100 .* carries 64"):
        narrow.keygen(net, rng(), None)


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_heads_their_dimensions_and_the_stream_are_exchanged_and_go_back(name):
    net = build(name)
    reference = align.prepared(net, {}, TOKENS[:2])
    assert len(reference.heads) == 2  # a block of heads a layer
    assert sorted(sum(len(r) for r in f.roots) for f in reference.families) == [64] * 5 + [256] * 2
    for scale in (1, 4):
        suspect = copy.deepcopy(net)
        with torch.no_grad():
            done, undone = disguise(suspect, TOKENS, scale, rng(1))
        assert done
        assert not undone
        assert distance(net, suspect) < 1e-5
        found = align.aligned(reference, suspect)
        assert found.converged
        assert found.moved >= len(reference.families) + 1  # of four heads all may stay where they are
        for key, value in net.state_dict().items():
            back = found.model.state_dict()[key]
            assert torch.equal(back, value) if scale == 1 else torch.allclose(back, value, rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("method", [UCHIDA, replace(NEURALMARK, k=64)])
@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_a_mark_is_read_again_behind_permuted_heads(name, method):
    net = build(name)
    key = method.keygen(net, rng(), None)
    rewrite(net, method, key, key.message.numpy())

    def error(model) -> float:
        return metrics.ber(method.extract(model, key, None), key.message)

    assert error(net) == 0
    suspect = copy.deepcopy(net)
    with torch.no_grad():
        disguise(suspect, TOKENS, 1, rng(1))
    assert distance(net, suspect) < 1e-5
    assert 0.2 < error(suspect) < 0.8
    reference = align.prepared(net, align.hidden(method, net, key), TOKENS[:2])
    assert error(align.aligned(reference, suspect).model) == 0


def test_conv1d_is_seen_read_and_put_back_as_what_it_computes():
    """A weight that transformers stores as (in, out) is (out, in) to all readers; as stored it says nothing."""
    net = gpt2()
    twin = stored(net)
    assert distance(net, twin) < 1e-6
    own, theirs = weights.weights(net), weights.weights(twin)
    assert [*own] == [*theirs]
    assert all(torch.equal(w, theirs[name]) for name, w in own.items())
    assert twin.transformer.h[0].attn.c_attn.weight.shape == (64, 192)
    unbound = replace(NEURALMARK, binding=False, rounds=0)
    drawn = unbound.keygen(net, rng(), None)
    bits = unbound.logits(net, drawn) > 0  # as if they had been embedded
    key = Key(bits, drawn.secret, drawn.where)
    assert metrics.ber(unbound.extract(twin, key, None), bits) == 0
    weight = twin.get_parameter(key.where[0])
    raw = unbound._rows(weight.reshape(-1)).mean(0) @ key.secret["matrix"]
    assert 0.2 < metrics.ber(raw.sigmoid().detach(), bits) < 0.8
    suspect = copy.deepcopy(twin)
    with torch.no_grad():
        done, undone = disguise(suspect, TOKENS, 1, rng(1))  # permuted as it is stored
    assert done
    assert not undone
    found = align.aligned(align.prepared(net, {}, TOKENS[:2]), suspect)
    assert distance(suspect, found.model) < 1e-5
    assert metrics.ber(unbound.extract(found.model, key, None), bits) == 0
    with torch.no_grad():  # in place, through the turned view
        weights.weights(twin)[key.where[0]].zero_()
    assert not twin.get_parameter(key.where[0]).any()


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_a_checkpoint_leaves_out_the_tied_head_and_is_opened_again(tmp_path, name):
    net = build(name)
    save_model(net, str(tmp_path / "net.safetensors"))
    assert len(load_file(tmp_path / "net.safetensors")) == len(net.state_dict()) - 1
    words = [f"model.checkpoint={tmp_path / 'net.safetensors'}"]
    if name == "gpt2":
        words += ["model=gpt2", "model.name=null", "model.weights=random"]
        words += [f"+model.kwargs.{k}={v}" for k, v in SMALL.items()]
        again = spec.build(config(*words).model, "model").build(IO, 5)
    else:
        again = spec.build(config("model=gpt", "model.width=64", *words).model, "model").build(IO, 5)
    assert distance(net, again.eval()) == 0
    again.get_parameter(next(iter(dict(again.named_parameters())))).data += 1
    assert torch.equal(again.lm_head.weight, getattr(again, "transformer", again).wte.weight)  # still one


def test_who_asks_without_data_fills_the_context_with_tokens_that_are(results):
    """Positions that an example does not reach would be moved freely, and logits would change."""
    task, network = language(results)
    asked = noise(task, rng())
    assert asked.dtype == torch.int64
    assert asked.shape[1] == task.config.context
    assert int(asked.min()) >= 0
    assert int(asked.max()) < task.signature.tokens
    assert len(asked.unique()) > 100
    net = vary(task.build(network, 0).eval())
    suspect = copy.deepcopy(net)
    with torch.no_grad():
        disguise(suspect, asked, 1, rng(1))
        tokens, _ = next(task.batches("test", 4))
        one, two = net(tokens), suspect(tokens)
    assert torch.allclose(one, two, atol=1e-5 * float(one.abs().max()))


def test_gpt2_is_opened_from_a_folder_with_its_own_tokens_alone(tmp_path):
    net = gpt2()
    folder = tmp_path / "net"
    copy.deepcopy(stored(net)).save_pretrained(folder)
    again = spec.build(config("model=gpt2", f"model.name={folder}").model, "model")
    assert again.title == "net"
    assert distance(net, again.build(IO, 0).eval()) < 1e-6
    for io, said in [
        (Vocabulary(400, 24), "has 300 tokens, the data 400: .*data.tokenizer=FOLDER"),
        (Vocabulary(300, 99), "has 24 positions: task.context=24"),
    ]:
        with pytest.raises(ConfigError, match=said):
            again.build(io, 0)
    for words, said in [
        ([f"model.name={tmp_path / 'none'}"], "model.name="),
        (["model.name=null"], "takes model.name=FOLDER"),
        ([f"model.name={folder}", "+model.kwargs.n_layer=1"], "no model.kwargs"),
        (["model.name=null", "model.weights=random", "+model.kwargs.n_embd=63"], "must be divisible"),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            spec.build(config("model=gpt2", *words).model, "model").build(IO, 0)
        assert "\n" not in str(caught.value)


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "bench.models._gpt2", raising=False)
    monkeypatch.delattr("bench.models._gpt2", raising=False)
    with pytest.raises(ConfigError, match=r"needs transformers: pip install 'watermark-bench\[text\]'"):
        spec.build(config("model=gpt2", "model.name=gpt2").model, "model").build(IO, 0)


def test_transformers_is_imported_by_who_asks_for_it_alone():
    code = "import sys, bench.run, bench.models, bench.tasks.language; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_anatomy_knows_the_head():
    net = build("gpt")
    assert anatomy.of(net).heads == {"lm_head"}
    assert anatomy.work(net, TOKENS[:1]) == 24 * sum(w.numel() for w in weights.weights(net).values())


LORA = {"rank": 4, "alpha": 32, "targets": ["c_attn"]}


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_a_low_rank_change_is_of_its_rank_and_then_in_the_weights(name):
    net = build(name)
    adapted = copy.deepcopy(net)
    lora.noted(adapted, LORA)
    names = lora.adapted(adapted)
    assert len(names) == 2
    with lora.attached(adapted, lora.of(adapted), names, 0) as only:
        assert distance(net, adapted) == 0  # B begins at zero
        own = [p for part in only for p in adapted.get_submodule(part).parameters()]
        assert [tuple(p.shape) for p in own] == [(4, 64), (192, 4)] * 2
        with torch.no_grad():
            for p in own:
                p.normal_(generator=torch.Generator().manual_seed(p.numel()), std=0.1)
        with torch.no_grad():
            before = adapted(TOKENS)
        assert distance(net, adapted) > 1e-3
    with torch.no_grad():
        assert torch.allclose(before, adapted(TOKENS), atol=1e-5)
    assert [*adapted.state_dict()] == [*net.state_dict()]
    for layer in names:
        delta = adapted.get_submodule(layer).weight - net.get_submodule(layer).weight
        assert int((torch.linalg.svdvals(delta.double()) > 1e-5).sum()) == 4
    assert all(isinstance(adapted.get_submodule(layer).weight, nn.Parameter) for layer in names)
    others = set(dict(net.named_parameters())) - {f"{layer}.weight" for layer in names}
    assert all(torch.equal(net.get_parameter(n), adapted.get_parameter(n)) for n in others)


def test_it_is_pefts():
    """One A and one B over queries, keys and values, the same scale: the same function of the same factors."""
    peft = pytest.importorskip("peft")
    net = gpt2()
    theirs = peft.get_peft_model(
        stored(net), peft.LoraConfig(r=4, lora_alpha=32, target_modules=["c_attn"], fan_in_fan_out=True)
    ).eval()
    ours = copy.deepcopy(net)
    lora.noted(ours, LORA)
    names = lora.adapted(ours)
    with lora.attached(ours, lora.of(ours), names, 0), torch.no_grad():
        for name in names:
            change = ours.get_submodule(name).parametrizations.weight[0]
            layer = theirs.base_model.model.get_submodule(name)
            change.b.normal_(std=0.1)
            assert layer.lora_A["default"].weight.shape == change.a.shape
            assert layer.lora_B["default"].weight.shape == change.b.shape
            layer.lora_A["default"].weight.copy_(change.a)
            layer.lora_B["default"].weight.copy_(change.b)
        one, two = ours(TOKENS), theirs.base_model.model(TOKENS)
        assert torch.allclose(one, two, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 4, "alpha": 32}, "takes exactly rank, alpha, targets"),
        ({**LORA, "rank": 0}, "rank must be at least 1"),
        ({**LORA, "targets": ["query"]}, "no linear layer; there are c_attn, c_fc"),
    ],
)
def test_a_low_rank_change_that_cannot_be_is_one_line(options, said):
    with pytest.raises(ConfigError, match=said):
        lora.noted(build("gpt"), options)
