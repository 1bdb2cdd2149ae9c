"""Text: the next token; bits per byte of held-out text, or BLEU of what is written.

An example is a reference, with or without a prompt before it. Without prompts (a text) a split is one stream of tokens,
cut into blocks of `context`: at a place drawn anew each epoch for training, from its start for what is measured. With
prompts (E2E) an example is a line; loss, distillation and divergence are of the reference and its end alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import metrics
from bench.data import texts
from bench.errors import ConfigError, among, checked, within
from bench.machine import device_of
from bench.models import base
from bench.models.tokens import Vocabulary, context_only
from bench.progress import Say
from bench.store.cache import Cache, Entry
from bench.types import Task

POOL = 16  # batches whose examples are sorted by length together
PROMPT = 24  # tokens of a text that are its prompt, where somebody asks what a network writes


@dataclass(frozen=True)
class Language:
    """The task's configuration.

    eval_batch: examples per forward pass when measuring; context: tokens that a network is given at most. metric: the
    utility, `bits` per byte or `bleu` (of data with prompts); meanings: prompts whose answers are written for it;
    written: tokens at most of an answer. max_damage: what a success may cost in each, which verify.max_damage takes.
    """

    eval_batch: int = within(1)
    context: int = within(8)
    metric: str = among("bits", "bleu")
    meanings: int = within(1)
    written: int = within(1)
    max_damage: dict[str, float]

    def __post_init__(self) -> None:
        checked(self, "task")
        if self.metric not in self.max_damage:
            raise ConfigError(f"task.max_damage has no {self.metric}")

    def open(self, data: texts.Text, cache: Cache, device: torch.device, say: Say) -> LanguageTask:
        """The task over a set of text, with the judge's view. Raises ConfigError for data that are none."""
        if not isinstance(data, texts.Text):
            raise ConfigError(f"data={data.name} holds no text: task=language takes data=pydoc, text, e2e")
        entry = texts.open_texts(data, cache, say)
        if self.metric == "bleu" and not entry["prompts"]:
            raise ConfigError(f"task.metric=bleu: {data.name} has no prompts to answer; data=e2e, or task.metric=bits")
        task = LanguageTask(self, data, entry, device)
        whole = texts.resident(entry, torch.device("cpu"))
        if entry["prompts"] and (long := int((whole.lengths - 1 > self.context).sum())):
            if int(whole.contexts.max()) >= self.context:
                raise ConfigError(f"a prompt has {int(whole.contexts.max())} tokens: raise task.context={self.context}")
            say(f"data: {long:,} examples are longer than task.context={self.context} and cut off")
        if empty := [name for name in ("owner", "attacker", "test") if not task.size(name)]:
            raise ConfigError(f"data: the {empty[0]} split holds no text; change data.*")
        return task


@dataclass(frozen=True)
class LanguageTask(Task):
    """A batch is (tokens int64 [B, T] as bench.models.tokens has them, labels int64 [N] of the positions asked)."""

    config: Language
    data: texts.Text
    entry: Entry
    device: torch.device
    smoothing: float = 0.0

    kind = "language"
    gives = "text"

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def utility_name(self) -> str:
        return {"bits": "bits/byte"}.get(self.config.metric, self.config.metric)

    @property
    def max_damage(self) -> float:
        return self.config.max_damage[self.config.metric]

    @property
    def identity(self) -> dict[str, Any]:
        """What a stage hash covers: the text in tokens, splits, context, and the utility's metric."""
        config = self.config
        of = {"meanings": config.meanings, "written": config.written} if config.metric == "bleu" else {}
        told = {"task": self.kind, "context": config.context, "metric": config.metric, **of}
        return {**told, "data": self.data.content(texts.digest(self.entry))}

    @property
    def signature(self) -> Vocabulary:
        return Vocabulary(self.entry["vocabulary"], self.config.context)

    @cached_property
    def _end(self) -> int:
        return texts.tokenizer_of(self.entry.path).token_to_id(texts.END)

    def size(self, split: str) -> int:
        """Lines with prompts, blocks without."""
        found = texts.resident(self.entry, torch.device("cpu"))
        lengths = found.lengths[found.split == texts.SPLITS.index(split)]
        return len(lengths) if self.entry["prompts"] else math.ceil(int(lengths.sum()) / self.config.context)

    def tensors(self, split: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(tokens, starts, lengths, contexts): of each example where it begins in the tokens, how many are its own,
        and how many of those come before the first that is asked. A stream of text begins with an end of text."""
        self.check(split)
        found = texts.resident(self.entry, self.device)
        which = (found.split == texts.SPLITS.index(split)).nonzero()[:, 0]
        starts, lengths = found.starts[which], found.lengths[which]
        if self.entry["prompts"]:
            return found.tokens, starts, lengths.clamp(max=self.config.context + 1), found.contexts[which]
        order = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths)
        order = order + torch.arange(len(order), device=self.device)
        stream = torch.cat([found.tokens.new_tensor([self._end]), found.tokens[order]])
        starts = torch.arange(0, len(stream) - 1, self.config.context, device=self.device)
        lengths = (len(stream) - starts).clamp(max=self.config.context + 1)
        return stream, starts, lengths, torch.zeros_like(starts)

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Examples of like lengths together, padded; blocks of a text begin, with a seed, at a place of the seed's."""
        tokens, starts, lengths, contexts = self.tensors(split)
        count = len(starts)
        if seed is None:
            # Sorted by length: nothing that is measured depends on the order.
            parts = list(lengths.argsort(stable=True).split(batch_size))
        else:
            rng = torch.Generator().manual_seed(seed)
            if not self.entry["prompts"] and count > 1:  # the stream as a ring, cut elsewhere
                starts = starts + int(torch.randint(self.config.context, (1,), generator=rng))
                lengths = torch.full_like(lengths, self.config.context + 1)
            order = torch.randperm(count, generator=rng)[: count // batch_size * batch_size or count]
            pools = [p[lengths.cpu()[p].argsort(stable=True)] for p in order.split(POOL * batch_size)]
            parts = [part.to(self.device) for pool in pools for part in pool.split(batch_size)]
            parts = [parts[i] for i in torch.randperm(len(parts), generator=rng)]
        for part in parts:
            yield self._batch(tokens, starts[part], lengths[part], contexts[part])

    def _batch(self, tokens: Tensor, starts: Tensor, lengths: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(int(lengths.max()), device=self.device)
        found = tokens[(starts[:, None] + at) % len(tokens)]
        inputs, labels, at = found[:, :-1], found[:, 1:], at[:-1]
        asked = (at >= contexts[:, None]) & (at < lengths[:, None] - 1)
        return torch.where(asked, inputs, context_only(inputs)), labels[asked]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = batch
        return functional.cross_entropy(model(tokens), labels, label_smoothing=self.smoothing)

    def smoothed(self, amount: float) -> LanguageTask:
        return replace(self, smoothing=amount)

    def distill(self, model: nn.Module, teacher: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy to the teacher's outputs, where it is asked."""
        tokens, _ = batch
        with torch.no_grad():
            target = teacher(tokens).softmax(1)
        return functional.cross_entropy(model(tokens), target)

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """Mean over positions asked of KL(p || p'), in nats, of logits [N, V] each."""
        p, q = (functional.log_softmax(x.float(), 1) for x in (outputs, others))
        return functional.kl_div(q, p, reduction="batchmean", log_target=True)

    def example(self, count: int = 2) -> Tensor:
        """The first token over and over, int64 [count, context], asked everywhere: all positions are reached."""
        return torch.zeros(count, self.config.context, dtype=torch.int64, device=self.device)

    def utility(self, model: nn.Module, split: str = "test") -> float:
        """Bits per byte of a split's references (their ends are paid for, and count no byte), or BLEU in percent."""
        if self.config.metric == "bleu":
            return self._bleu(model, split)
        return self._nats(model, split)[0] / math.log(2) / self._bytes(split)

    def perplexity(self, model: nn.Module, split: str = "test") -> float:
        """Per token of a split's references."""
        nats, count = self._nats(model, split)
        return math.exp(nats / count)

    def confidence(
        self, host: nn.Module, victim: nn.Module, utility_host: float, utility_victim: float
    ) -> tuple[float, float | None]:
        """Example by example, in nats a token; blind: tokens as often as the owner has them. Of BLEU no interval."""
        tokens, starts, lengths, _ = self.view("owner").tensors("owner")
        seen = torch.cat([tokens[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)])
        blind = _Prior((torch.bincount(seen, minlength=self.entry["vocabulary"]) + 1).double().log().float())
        parts = [self._each(model) for model in (host, victim, blind.to(self.device))]
        found, half = metrics.paired(lambda p: p[..., 0] / p[..., 1], *parts, sign=-1)
        if self.config.metric == "bleu":
            return found, None
        return found, half * float(parts[0][:, 1].sum()) / math.log(2) / self._bytes("test")

    def _each(self, model: nn.Module) -> Tensor:
        """(nats, tokens asked) of each example of the test split, float64 [N, 2] on the CPU."""
        model.eval()
        device, found = device_of(model), []
        with torch.inference_mode():
            for tokens, labels in self.batches("test", self.config.eval_batch):
                logits = model(tokens.to(device)).float()
                logits = torch.where(logits.isfinite().all(1, keepdim=True), logits, 0.0)
                nats = functional.cross_entropy(logits, labels.to(device), reduction="none").double().cpu()
                counts = (tokens >= 0).sum(1).cpu()
                which = torch.arange(len(counts)).repeat_interleave(counts)
                sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, which, nats)
                found.append(torch.stack([sums, counts.double()], 1))
        return torch.cat(found)

    def _bytes(self, split: str) -> int:
        found = texts.resident(self.entry, torch.device("cpu"))
        return int(found.bytes[found.split == texts.SPLITS.index(split)].sum())

    def _nats(self, model: nn.Module, split: str) -> tuple[float, int]:
        """(nats of all tokens asked, how many); logits that are not numbers say nothing: ln V."""
        model.eval()
        device, total, count = device_of(model), 0.0, 0
        with torch.inference_mode():
            for tokens, labels in self.batches(split, self.config.eval_batch):
                logits = model(tokens.to(device)).float()
                logits = torch.where(logits.isfinite().all(1, keepdim=True), logits, 0.0)
                total += float(functional.cross_entropy(logits, labels.to(device), reduction="sum").double())
                count += len(labels)
        return total, count

    def _bleu(self, model: nn.Module, split: str) -> float:
        """Of greedy answers to the first `meanings` prompts of a split, against all references of each."""
        try:
            import sacrebleu
        except ImportError as error:
            raise ConfigError("task.metric=bleu needs sacrebleu: pip install 'watermark-bench[text]'") from error
        prompts, references = zip(*self.questions(split, self.config.meanings), strict=True)
        given = [self.text(answer) for answer in self.written(model, prompts, self.config.written)]
        most = max(map(len, references))
        turned = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
        return float(sacrebleu.corpus_bleu(given, turned).score)

    def questions(self, split: str, count: int) -> list[tuple[list[int], list[str]]]:
        """(prompt's tokens, references) of the first so many different prompts of a split, in an order by seed 0; of a
        text some of a passage, from its middle, and how it goes on."""
        self.check(split)
        found = texts.resident(self.entry, torch.device("cpu"))
        which = (found.split == texts.SPLITS.index(split)).nonzero()[:, 0].tolist()
        asked: dict[tuple[int, ...], list[str]] = {}
        for i in which:
            start, length, context = (int(x[i]) for x in (found.starts, found.lengths, found.contexts))
            tokens = found.tokens[start : start + length].tolist()
            if context:
                prompt, answer = tokens[: context + 1], tokens[context + 1 : -1]
            else:
                if length <= 4 * PROMPT:
                    continue
                at = length // 2  # a title says little
                prompt, rest = tokens[at : at + PROMPT], tokens[at + PROMPT : -1]
                answer = rest[: self.config.written]
            asked.setdefault(tuple(prompt), []).append(self.text(answer))
        order = np.random.default_rng(0).permutation(len(asked))[:count]
        listed = list(asked.items())
        return [(list(listed[i][0]), listed[i][1]) for i in order]

    def text(self, tokens: list[int]) -> str:
        return texts.tokenizer_of(self.entry.path).decode(tokens)

    def written(self, model: nn.Module, prompts: Any, most: int) -> list[list[int]]:
        """What a network writes after each prompt, the likeliest token each time, up to an end or `most` tokens."""
        model.eval()
        device, rows = device_of(model), [list(p) for p in prompts]
        going = list(range(len(rows)))
        with torch.inference_mode():
            for _ in range(most):
                going = [i for i in going if len(rows[i]) <= self.config.context]
                if not going:
                    break
                width = max(len(rows[i]) for i in going)
                tokens = torch.full((len(going), width), -1)  # what pads is context
                for k, i in enumerate(going):
                    tokens[k, : len(rows[i])] = context_only(torch.tensor(rows[i]))
                    tokens[k, len(rows[i]) - 1] = rows[i][-1]
                new = model(tokens.to(device)).float().nan_to_num().argmax(1).tolist()
                for i, token in zip(going, new, strict=True):
                    rows[i].append(token)
                going = [i for i, t in zip(going, new, strict=True) if t != self._end]
        answers = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
        return [a[:-1] if a and a[-1] == self._end else a for a in answers]

    def build(self, model: base.Network, seed: int) -> nn.Module:
        if model.gives != self.gives:
            raise ConfigError(f"model {model.title} gives {model.gives}: task=language takes model=gpt, gpt2")
        return model.build(self.signature, seed).to(self.device)


class _Prior(nn.Module):
    """What is known without looking: the same logits [V] wherever it is asked."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(int((tokens >= 0).sum()), -1)
