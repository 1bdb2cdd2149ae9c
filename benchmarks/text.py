"""What a network of text has to beat: gzip, lzma and a 3-gram, in bits per byte of the test split.

    python benchmarks/text.py                          # data=pydoc
    python benchmarks/text.py data=e2e data.path=...   # references alone are counted; prompts are known

gzip and lzma compress the test text by itself, and after the owner's text (what it adds to its size; gzip looks back
32 KiB only). The 3-gram is of the task's own tokens, counted on the owner's part, interpolated after Witten and Bell.
"""

from __future__ import annotations

import gzip
import lzma
import math
import sys
import tempfile
from collections import Counter, defaultdict

import torch

from bench import spec
from bench.cli.compose import composed
from bench.models.tokens import read
from bench.store.cache import Cache
from bench.tasks.language import LanguageTask


def examples(task: LanguageTask, split: str) -> list[tuple[list[int], int]]:
    """(tokens, how many come before the first that is asked) of every example."""
    tokens, starts, lengths, contexts = task.tensors(split)
    every = zip(starts.tolist(), lengths.tolist(), contexts.tolist(), strict=True)
    return [(tokens[s : s + n].tolist(), c) for s, n, c in every]


def text(task: LanguageTask, split: str) -> bytes:
    found = [label for _, label in task.batches(split, 64)]
    if task.entry["prompts"]:
        return task.text(torch.cat(found).tolist()).encode()
    return task.text([t for tokens, _ in examples(task, split) for t in tokens[1:]]).encode()


def trigram(task: LanguageTask) -> float:
    """Nats of the test split's tokens that are asked."""
    size = task.signature.tokens
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for tokens, _ in examples(task, "owner"):
        for i in range(1, len(tokens)):
            for n in range(3):
                if i >= n:
                    counts[tuple(tokens[i - n : i])][tokens[i]] += 1

    def chance(history: tuple[int, ...], token: int) -> float:
        lower = chance(history[1:], token) if history else 1 / size
        if not (found := counts.get(history)):
            return lower
        seen, kinds = found.total(), len(found)
        return (found[token] + kinds * lower) / (seen + kinds)

    total = 0.0
    for tokens, context in examples(task, "test"):
        for i in range(context + 1, len(tokens)):
            total -= math.log(chance(tuple(tokens[max(0, i - 2) : i]), tokens[i]))
    return total


def main(words: list[str]) -> None:
    cfg = composed(["task=language", *words])
    with tempfile.TemporaryDirectory() as folder:
        data = spec.build(cfg.data, "data")
        task = spec.build(cfg.task, "task").open(data, Cache(folder, None), torch.device("cpu"), print)
        owner, test = text(task, "owner"), text(task, "test")
        count = task._bytes("test")
        asked = sum(len(read(tokens)[1][0]) for tokens, _ in task.batches("test", 64))
        print(f"owner {len(owner):,} bytes; test {count:,} bytes, {asked:,} tokens")
        for name, packed in (("gzip -9", gzip.compress), ("lzma", lzma.compress)):
            alone, after = len(packed(test)), len(packed(owner + test)) - len(packed(owner))
            print(
                f"{name:8} {8 * alone / count:.2f} bits/byte by itself, {8 * after / count:.2f} after the owner's text"
            )
        print(f"3-gram   {trigram(task) / math.log(2) / count:.2f} bits/byte")


if __name__ == "__main__":
    main(sys.argv[1:])
