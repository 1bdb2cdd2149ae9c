"""Text in tokens: exact, split by group, its tokens learned on the owner's part alone; what is wrong is one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bench import spec
from bench.data import texts
from bench.errors import ConfigError
from bench.store.cache import Cache
from tests.helpers import CPU, config, language

LINES = [
    f"name : {name} | area : {area} | near : {near}||{name} is {how} in the {area} , near {near} ."
    for name in ("The Eagle", "Zizzi", "Aromi", "Strada", "The Vaults", "Cotto", "Giraffe", "Loch Fyne")
    for area in ("riverside", "city centre")
    for near, how in (("Cafe Rouge", "a place"), ("the Sorrento", "located"))
]
E2E = ["data=e2e", "data.train_limit=null", "data.test_limit=null", "data.attacker=0.3", "task.context=128"]


@pytest.fixture
def e2e(tmp_path) -> Path:
    folder = tmp_path / "e2e"
    folder.mkdir()
    (folder / "valid.txt").write_text("\n".join(LINES * 2))
    (folder / "test.txt").write_text("\n".join(line.replace("riverside", "harbour") for line in LINES))
    return folder


def opened(results: Path, folder: Path, *more: str):
    return language(results, *E2E, f"data.path={folder}", *more)[0]


def held(task) -> texts.Tokens:
    return texts.resident(task.entry, CPU)


def test_a_text_comes_back_byte_for_byte(results):
    task, _ = language(results)
    found = held(task)
    i = int((found.split == 3).nonzero()[0])
    start, length = int(found.starts[i]), int(found.lengths[i])
    text = task.text(found.tokens[start : start + length - 1].tolist())
    assert text in {p.text for p in task.data.passages()}
    assert len(text.encode()) == int(found.bytes[i])
    assert int(found.tokens.max()) < task.signature.tokens == 300


def test_no_group_is_in_two_splits(results, e2e):
    task = opened(results, e2e)
    passages = task.data.passages()
    of: dict[str, set[int]] = {}
    for passage, split in zip(passages, held(task).split.tolist(), strict=True):
        of.setdefault(passage.group, set()).add(split)
    assert all(len(splits) == 1 for splits in of.values())
    assert set().union(*of.values()) == {0, 1, 2, 3}


def test_tokens_are_learned_on_the_owners_part_alone(results, tmp_path, e2e):
    """Whatever the others' text says, the tokenizer stays; the owner's decides it. A network of one part is one of
    the other: both have the tokens of valid.txt."""
    task = opened(results, e2e)
    passages, split = task.data.passages(), held(task).split.tolist()
    owners = {p.group for p, s in zip(passages, split, strict=True) if s == 0}
    changed = tmp_path / "changed"
    shutil.copytree(e2e, changed)
    lines = [line if line.split("||")[0] in owners else f"{line} qqqq zzzz" for line in LINES * 2]
    (changed / "valid.txt").write_text("\n".join(lines))

    def tokens(task) -> str:
        return (task.entry.path / texts.FILE).read_text()

    assert tokens(opened(results, changed)) == tokens(task)
    assert tokens(opened(results, e2e, "data.part=test")) == tokens(task)
    (changed / "valid.txt").write_text("\n".join(f"{line} qqqq zzzz" for line in LINES * 2))
    assert tokens(opened(results, changed)) != tokens(task)


def test_a_folder_of_files_and_a_column_of_parquet(results, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    said = [f"Text number {i} says: {'la ' * i}" for i in range(20)]
    for i, text in enumerate(said):
        (tmp_path / f"{i:02}.txt").write_text(text)
    more = ["data=text", "data.train_limit=null", "data.test_limit=null"]
    a, _ = language(results, *more, f"data.path={tmp_path}")
    b, _ = language(results, *more, f"data.path={tmp_path}/*.txt")
    pq.write_table(pa.table({"content": said}), tmp_path / "a.parquet")
    c, _ = language(results, *more, f"data.path={tmp_path}", "data.column=content")
    assert texts.digest(a.entry) == texts.digest(b.entry)
    assert torch.equal(held(a).bytes.sort()[0], held(c).bytes.sort()[0])
    assert c.entry["passages"] == a.entry["passages"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=text", "data.path={here}"], r"no \.txt files"),
        (["data=text", "data.path={empty}"], "holds no text"),
        (["data=text", "data.path={nowhere}"], "no .txt files"),
        (["data=e2e", "data.path={here}"], "has no valid.txt"),
        (["data=e2e", "data.path={broken}"], "line 2: not `meaning representation"),
        (["data.tokenizer={here}"], "holds no tokenizer.json, nor vocab.json and merges.txt"),
        (["data.tokenizer={nowhere}"], "no such folder"),
        (["data.tokenizer={badly}"], "is no tokenizer"),
        (["data.vocabulary=100"], "at least 257"),
        (["data.train_limit=1"], "split is empty"),
        (["task.metric=bleu"], "has no prompts to answer"),
        (["task.metric=rouge"], "bits, bleu"),
    ],
)
def test_what_is_wrong_with_text_is_one_line(results, tmp_path, words, said):
    places = {name: tmp_path / name for name in ("here", "empty", "broken", "badly", "nowhere")}
    for name, place in places.items():
        if name != "nowhere":
            place.mkdir()
    (places["empty"] / "a.txt").write_text("  \n")
    (places["broken"] / "valid.txt").write_text("a : b||It is.\nno bars here")
    (places["badly"] / texts.FILE).write_text("{}")
    with pytest.raises(ConfigError, match=said) as caught:
        language(results, *(word.format(**places) for word in words))
    assert "\n" not in str(caught.value)


def test_pictures_are_no_text():
    data, task = (spec.build(config("task=language", "data=digits")[group], group) for group in ("data", "task"))
    with pytest.raises(ConfigError, match="holds no text: task=language takes data=pydoc"):
        task.open(data, None, CPU, print)


def test_pictures_tasks_refuse_text(results):
    cfg = config("data=pydoc")
    data, cache = spec.build(cfg.data, "data"), Cache(str(results / "cache"), None)
    for name in ("classification", "restoration"):
        with pytest.raises(ConfigError, match="task=language"):
            spec.build(config(f"task={name}").task, "task").open(data, cache, CPU, lambda line: None)
