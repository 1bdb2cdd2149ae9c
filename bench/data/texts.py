"""Text: where it comes from, how it is split, in which tokens it is kept.

A set is a list of passages, each of a group (a topic, a meaning, a file) that no two splits share. Tokens are those of
a byte-level BPE (tokenizers), learned on the owner's part alone, or those of a folder that a network came with. Ids
below 257 are always valid: every byte has a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import spec
from bench.data.images import on_device
from bench.data.source import existing, split_indices, stamp
from bench.errors import SEEDS, ConfigError, among, checked, near, within
from bench.progress import Say
from bench.store.cache import Cache, Entry, cached

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"  # before a reference and after it; GPT-2's
SPLITS = ("owner", "attacker", "validation", "test")
FILE = "tokenizer.json"


class Passage(NamedTuple):
    """A text, what it is an answer to (or nothing), and whose group it is of."""

    group: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Text:
    """What every source of text shares.

    test: fraction of the groups held out. validation: of the rest; attacker: the attacker's fraction of what is left;
    split_seed fixes the splits for all runs; train_limit, test_limit: use only so many groups. vocabulary: tokens of
    the BPE that is learned; tokenizer: a folder with tokenizer.json, or vocab.json and merges.txt, to take instead.
    """

    label: str | None
    test: float = within(0, 1, ends="[)")
    validation: float = within(0, 1, ends="[)")
    attacker: float = within(0, 1, ends="[)")
    split_seed: int = within(0, SEEDS[1])
    train_limit: int | None = within(1)
    test_limit: int | None = within(1)
    vocabulary: int = within(257)
    tokenizer: str | None

    # Where the content lies: told by its digest already.
    located: ClassVar[tuple[str, ...]] = ("label", "path", "tokenizer")

    def __post_init__(self) -> None:
        checked(self, "data")

    @property
    def name(self) -> str:
        return self.label or Path(getattr(self, "path", type(self).__name__)).name

    def content(self, digest: str) -> dict[str, Any]:
        """What a stage hash covers: the content's digest, and how it is split."""
        return {k: v for k, v in asdict(self).items() if k not in self.located} | {"digest": digest}

    def source(self) -> dict[str, Any]:
        raise self._refused()

    def picture_source(self) -> dict[str, Any]:
        raise self._refused()

    def _refused(self) -> ConfigError:
        return ConfigError(f"data={type(self).__name__.lower()} holds text, no pictures: it is for task=language")

    def files(self) -> dict[str, Any]:
        """A cheap fingerprint of the content, which decides whether it has to be read again."""
        raise NotImplementedError

    def passages(self) -> list[Passage]:
        """All of it. Raises ConfigError for files that are not as they should be."""
        raise NotImplementedError

    def learned_on(self, owners: list[Passage]) -> Sequence[str]:
        """What the BPE is learned on."""
        return [p.text for p in owners] + [p.prompt for p in owners if p.prompt]


@dataclass(frozen=True)
class Pydoc(Text):
    """The topics that ship with Python (pydoc_data.topics): 0.4 MB of English about Python. Topics quote each other: a
    paragraph that several have stays in the first of them alone, or the test split would be known by heart."""

    def files(self) -> dict[str, Any]:
        topics = _topics()
        return {"source": "pydoc", "content": spec.digest(sorted(topics.items()))}

    def passages(self) -> list[Passage]:
        found, seen = [], set()
        for name, text in sorted(_topics().items()):
            parts = [part for part in text.split("\n\n") if part.strip() and part.strip() not in seen]
            seen |= {part.strip() for part in parts}
            found += [Passage(name, "", "\n\n".join(parts))] if parts else []
        return found


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


@dataclass(frozen=True)
class Plain(Text):
    """Files of text, path/*.txt (a file is a group; with `column` a row of path/*.parquet is)."""

    path: str
    column: str | None

    def _files(self) -> list[Path]:
        ending = ".parquet" if self.column else ".txt"
        at = Path(self.path).expanduser()
        found = sorted(at.rglob(f"*{ending}")) if at.is_dir() else sorted(map(Path, glob(str(at))))
        found = [p for p in found if p.suffix == ending]
        if not found:
            more = "" if self.column else "; of parquet say data.column=COLUMN"
            raise ConfigError(f"data.path={self.path} has no {ending} files (looked in {Path.cwd()}){more}")
        return found

    def files(self) -> dict[str, Any]:
        return {"source": "text", "column": self.column, "files": stamp(self._files())}

    def passages(self) -> list[Passage]:
        if self.column is None:
            try:
                found = [Passage(str(p), "", p.read_text(encoding="utf-8")) for p in self._files()]
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.path={self.path}: a file is no UTF-8 text ({error})") from error
        else:
            import pyarrow.parquet as pq

            tables = [(p, pq.read_table(p)) for p in self._files()]
            if gone := [p for p, table in tables if self.column not in table.column_names]:
                offer = near(self.column, pq.read_schema(gone[0]).names)
                raise ConfigError(f"data.column={self.column}: {gone[0]} has none such; {offer}")
            texts = [(p, i, t) for p, table in tables for i, t in enumerate(table[self.column].to_pylist())]
            found = [Passage(f"{p}:{i}", "", str(t)) for p, i, t in texts if t is not None]
        return [p for p in found if p.text.strip()]


@dataclass(frozen=True)
class E2e(Text):
    """The E2E challenge (Novikova, Dusek, Rieser 2017): lines `meaning||reference` of path/{train,valid,test}.txt.

    part: which; they have no meaning in common. Splits are by meaning. Tokens are learned on the owner's part of
    valid.txt, whichever part is used: a network of one is one of the other.
    """

    path: str
    part: str = among("train", "valid", "test")

    def _file(self, part: str) -> Path:
        file = existing(self.path, "data.path") / f"{part}.txt"
        if not file.is_file():
            raise ConfigError(f"data.path={self.path} has no {part}.txt")
        return file

    def files(self) -> dict[str, Any]:
        return {"source": "e2e", "part": self.part, "files": stamp([self._file("valid"), self._file(self.part)])}

    def passages(self) -> list[Passage]:
        found = []
        for number, line in enumerate(self._file(self.part).read_text(encoding="utf-8").splitlines(), 1):
            meaning, sign, reference = (x.strip() for x in line.partition("||"))
            if not sign or not meaning or not reference:
                raise ConfigError(f"{self._file(self.part)}, line {number}: not `meaning representation||reference`")
            found.append(Passage(meaning, meaning, reference))
        return found

    def learned_on(self, owners: list[Passage]) -> Sequence[str]:
        if self.part != "valid":
            base = replace(self, part="valid", train_limit=None, test_limit=None)
            passages = base.passages()
            owners = [p for p, s in zip(passages, _assigned(base, passages), strict=True) if SPLITS[s] == "owner"]
        return super().learned_on(owners)


@dataclass(frozen=True)
class Tokens:
    """A set in tokens.

    tokens int64 [total], passages one after another, each as prompt END text END (without a prompt: text END); starts,
    lengths, contexts [N]: where each begins, its tokens, those of its prompt; split [N]: position in SPLITS, -1 for
    none; bytes [N]: of its text, in UTF-8. All on the device.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    contexts: Tensor
    split: Tensor
    bytes: Tensor


def open_texts(data: Text, cache: Cache, say: Say) -> Entry:
    """The set in tokens, from the cache or made; with its tokenizer's file. Raises ConfigError."""

    def build(folder: Path) -> dict[str, Any]:
        passages = data.passages()
        if not any(p.text.strip() for p in passages):
            raise ConfigError(f"data={data.name} holds no text")
        split = _assigned(data, passages)
        owners = [p for p, s in zip(passages, split, strict=True) if SPLITS[s] == "owner"]
        tokenizer = opened(data.tokenizer) if data.tokenizer else learned(data.learned_on(owners), data.vocabulary)
        end = tokenizer.token_to_id(END)
        if end is None:
            raise ConfigError(f"data.tokenizer={data.tokenizer} has no token {END}")
        texts = [e.ids for e in tokenizer.encode_batch([p.text for p in passages])]
        prompts = [e.ids for e in tokenizer.encode_batch([p.prompt for p in passages])]
        whole = [[*a, end, *b, end] if a else [*b, end] for a, b in zip(prompts, texts, strict=True)]
        lengths = torch.tensor([len(x) for x in whole])
        found = {
            "tokens": torch.tensor([i for x in whole for i in x], dtype=torch.int64),
            "starts": lengths.cumsum(0) - lengths,
            "lengths": lengths,
            "contexts": torch.tensor([len(a) for a in prompts]),
            "split": torch.from_numpy(split),
            "bytes": torch.tensor([len(p.text.encode()) for p in passages]),
        }
        save_file(found, folder / "texts.safetensors")
        tokenizer.save(str(folder / FILE))
        counts = {name: int((found["split"] == i).sum()) for i, name in enumerate(SPLITS)}
        return {"vocabulary": tokenizer.get_vocab_size(), "passages": counts, "prompts": bool(any(prompts))}

    chosen = {k: v for k, v in asdict(data).items() if k not in data.located}
    given = {"tokenizer": _fingerprint(data.tokenizer)} if data.tokenizer else {}
    entry = cached(cache, "text", {**data.files(), **chosen, **given, "library": _library()}, build, say)
    if entry.built:
        say(f"data: read {sum(entry['passages'].values()):,} passages of {data.name}, {entry['vocabulary']:,} tokens")
    return entry


def resident(entry: Entry, device: torch.device) -> Tokens:
    """A set on the device, shared by all runs of a process."""
    return Tokens(**on_device(entry, "texts.safetensors", device))


def digest(entry: Entry) -> str:
    """Of a set's content in tokens, wherever its files were."""
    sums = entry.meta["sha256"]
    return spec.digest([sums["texts.safetensors"], sums[FILE]])


@lru_cache(maxsize=8)
def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a set's entry."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / FILE))


def learned(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of so many tokens, END first, all bytes among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": [END], "initial_alphabet": sorted(alphabet), "show_progress": False}
    found.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, **options))
    return found


def opened(path: str) -> Tokenizer:
    """The tokenizer of a folder: tokenizer.json, or GPT-2's vocab.json and merges.txt. Raises ConfigError."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder = existing(path, "data.tokenizer")
    pair = folder / "vocab.json", folder / "merges.txt"
    try:
        if (folder / FILE).is_file():
            return Tokenizer.from_file(str(folder / FILE))
        if not all(p.is_file() for p in pair):
            raise ConfigError(f"data.tokenizer={path} holds no {FILE}, nor vocab.json and merges.txt")
        found = Tokenizer(models.BPE.from_file(*map(str, pair)))
    except ConfigError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(f"data.tokenizer={path} is no tokenizer: {error}") from error
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if found.token_to_id(END) is not None:
        found.add_special_tokens([AddedToken(END, special=True)])
    return found


def _assigned(data: Text, passages: list[Passage]) -> np.ndarray:
    """[N] of positions in SPLITS, -1 for passages of groups beyond a limit. Raises ConfigError for an empty split."""
    groups = sorted({p.group for p in passages})
    order = np.random.default_rng(0).permutation(len(groups))
    held = round(len(groups) * data.test)
    test, train = order[:held], order[held:]
    index = split_indices(data, len(train), len(test), "groups of text")
    own = {name: (test if name == "test" else train)[index[name]] for name in SPLITS}
    number = {groups[i]: SPLITS.index(name) for name, positions in own.items() for i in positions}
    return np.array([number.get(p.group, -1) for p in passages], np.int64)


def _fingerprint(path: str) -> str:
    folder = existing(path, "data.tokenizer")
    return stamp([p for p in (folder / FILE, folder / "vocab.json", folder / "merges.txt") if p.is_file()])


def _library() -> str:
    from importlib.metadata import version

    return version("tokenizers")
