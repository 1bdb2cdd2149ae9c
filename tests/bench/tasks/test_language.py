"""Language modelling: which positions are asked, what they cost, what is measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.errors import ConfigError
from bench.models.tokens import context_only, read
from tests.bench.data.test_texts import E2E, e2e, opened  # noqa: F401 (a fixture)
from tests.helpers import language


class Uniform(nn.Module):
    """Gives every token the same chance, and counts what it is asked."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens, self.here = tokens, nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        return self.here.expand(int((tokens >= 0).sum()), self.tokens)


def test_what_is_asked_is_the_reference_and_its_end(results, e2e):  # noqa: F811
    task = opened(results, e2e).view("owner")
    lines = {p.prompt: set() for p in task.data.passages()}
    for p in task.data.passages():
        lines[p.prompt].add(p.text)
    for tokens, labels in task.batches("owner", 5):
        ids, (rows, _) = read(tokens)
        for row in range(len(tokens)):
            asked = labels[rows == row].tolist()
            assert asked[-1] == task._end
            first = int((tokens[row] >= 0).nonzero()[0])
            assert ids[row, first] == task._end  # the sign after the prompt
            assert task.text(asked[:-1]).strip() in lines[task.text(ids[row, :first].tolist())]


def test_neither_prompts_labels_nor_padding_weigh(results, e2e):  # noqa: F811
    """The loss of a batch is the mean over its references' tokens, each example's as if it were alone."""
    task = opened(results, e2e).view("owner")
    _, network = language(results)
    net = task.build(network, 0).eval()
    tokens, labels = next(task.batches("owner", 4, seed=3))
    assert bool((tokens < 0).any())
    rows = read(tokens)[1][0]
    with torch.no_grad():
        pairs = [(net(tokens[i : i + 1]), labels[rows == i]) for i in range(len(tokens))]
        each = [float(functional.cross_entropy(x, y, reduction="sum")) for x, y in pairs]
        assert sum(each) / len(labels) == pytest.approx(float(task.loss(net, (tokens, labels))), rel=1e-5)
    ids, (r, c) = read(tokens)
    padded = torch.where(tokens < 0, context_only(ids), tokens)
    for i in range(len(tokens)):
        padded[i, int(c[r == i].max()) + 1 :] = context_only(torch.tensor(7))
    assert torch.allclose(net(padded), net(tokens), atol=1e-6)


def test_bits_per_byte_of_who_knows_nothing(results):
    """log2 V a token, however it is batched; every byte of the text counts once, ends are paid for."""
    task, _ = language(results)
    tokens, starts, lengths, _ = task.tensors("test")
    expected = (len(tokens) - 1) * math.log2(300) / task._bytes("test")
    assert task.utility(Uniform(300)) == pytest.approx(expected, rel=1e-6)
    other, _ = language(results, "task.eval_batch=3")
    assert other.utility(Uniform(300)) == pytest.approx(expected, rel=1e-6)
    assert task.perplexity(Uniform(300)) == pytest.approx(300, rel=1e-6)
    assert int((lengths - 1).sum()) == len(tokens) - 1
    assert len(starts) == task.size("test")
    broken = Uniform(300)
    broken.here.data.fill_(float("nan"))
    assert task.utility(broken) == pytest.approx(expected, rel=1e-6)  # what is no number says nothing


def test_blocks_begin_elsewhere_in_each_epoch_and_all_is_seen(results):
    task = language(results)[0].view("owner")

    def epoch(seed: int | None) -> list[torch.Tensor]:
        return [labels for _, labels in task.batches("owner", 4, seed)]

    assert all(torch.equal(a, b) for a, b in zip(epoch(1), epoch(1), strict=True))
    assert not torch.equal(epoch(1)[0], epoch(2)[0])
    stream, starts, _, _ = task.tensors("owner")
    assert torch.equal(torch.cat(epoch(None)).sort()[0], stream[1:].sort()[0])
    assert len(epoch(1)) == len(starts) // 4 == task.size("owner") // 4
    assert all(len(x) == 4 * 32 for x in epoch(1))


def test_outputs_of_tokens_not_asked_are_not_computed(results):
    task, network = language(results)
    net = task.build(network, 0)
    tokens = torch.randint(0, 256, (2, 10))
    every = net(tokens).view(2, 10, -1)
    some = tokens.clone()
    some[:, :7] = context_only(some[:, :7])
    assert torch.allclose(net(some).view(2, 3, -1), every[:, 7:], atol=1e-6)
    assert net(context_only(tokens)).shape == (0, 300)


def test_no_position_sees_what_comes_after(results):
    task, network = language(results)
    net = task.build(network, 0).eval()
    tokens = torch.randint(0, 256, (1, 12))
    later = tokens.clone()
    later[0, 8:] = 5
    assert torch.equal(net(tokens)[:8], net(later)[:8])


def test_what_is_written_is_the_likeliest_token_one_after_another(results, e2e):  # noqa: F811
    task = opened(results, e2e)
    net = task.build(language(results)[1], 0).eval()
    prompts = [p for p, _ in task.questions("test", 3)]
    assert len({len(p) for p in prompts}) > 1
    together = task.written(net, prompts, 6)
    for prompt, answer in zip(prompts, together, strict=True):
        row = list(prompt)
        for token in answer:
            assert token == int(net(torch.tensor([row]))[-1].argmax())
            row.append(token)


def test_bleu_of_the_references_themselves_is_full(results, e2e):  # noqa: F811
    pytest.importorskip("sacrebleu")
    task = opened(results, e2e, "task.metric=bleu", "task.written=60")

    class Knows(nn.Module):
        def __init__(self):
            super().__init__()
            self.here = nn.Parameter(torch.zeros(1))
            found, tokens = task.tensors("test"), []
            for start, length, context in zip(*(x.tolist() for x in found[1:]), strict=True):
                tokens.append((context + 1, found[0][start : start + length].tolist()))
            self.lines = {tuple(line[:n]): line for n, line in tokens}

        def forward(self, tokens):
            ids, (_, columns) = read(tokens)
            out = torch.zeros(len(ids), task.signature.tokens)
            for i, at in enumerate(columns.tolist()):
                line = next(x for p, x in self.lines.items() if tuple(ids[i, : len(p)].tolist()) == p)
                out[i, line[at + 1]] = 1
            return out

    assert task.utility(Knows()) == pytest.approx(100)
    assert (task.utility_name, task.max_damage) == ("bleu", 1.0)
    assert task.utility(task.build(language(results)[1], 0)) < 5


def test_a_prompt_longer_than_the_context_and_a_line_that_is_cut_are_said(results, e2e):  # noqa: F811
    with pytest.raises(ConfigError, match=r"raise task\.context=16"):
        opened(results, e2e, "task.context=16")
    said: list[str] = []
    task, _ = language(results, *E2E, f"data.path={e2e}", "task.context=50", say=said.append)
    assert any("longer than task.context=50" in line for line in said)
    assert all(tokens.shape[1] <= 50 for tokens, _ in task.batches("test", 8))


def test_classifiers_are_refused(results):
    from bench import spec
    from tests.helpers import config

    task, _ = language(results)
    with pytest.raises(ConfigError, match="task=language takes model=gpt, gpt2"):
        task.build(spec.build(config("model=resnet18").model, "model"), 0)
    assert task.head(task.build(language(results)[1], 0)) is None


def test_a_host_is_one_that_beats_how_often_tokens_are(results):
    task, _ = language(results)
    n, uniform = task.size("test"), Uniform(task.entry["vocabulary"])
    log10_p, half = task.confidence(uniform, uniform, 0.0, 0.0)
    assert (log10_p, half) == pytest.approx((0, 0), abs=1e-9)
    nats, tokens = task._nats(uniform, "test")
    assert task._each(uniform).sum(0).tolist() == pytest.approx([nats, tokens])
    shift = nn.Module()
    shift.forward = lambda tokens: uniform(tokens) + torch.arange(uniform.tokens) * 0.01
    shift.here = uniform.here
    _, half = task.confidence(uniform, shift, 0.0, 0.0)
    assert 0 < half < 1
    assert n == len(task._each(uniform))
