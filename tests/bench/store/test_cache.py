"""A cache entry is believed only where all of it is what was written; what was killed is swept; modes and bytes."""

from __future__ import annotations

import copy
import json
import os
import shutil
import stat
import time

import numpy as np
import pytest
import torch

from bench.store import cache, files
from bench.store.cache import cached
from bench.store.keys import save_key
from bench.types import Key


def ask(root, n=1, say=lambda line: None):
    def build(folder):
        (folder / "weights").write_bytes(b"abc" * 100)
        (folder / "key.safetensors").write_bytes(b"key")
        return {"utility": 13.0, "n": n}

    return cached(root, "host", {"n": n}, build, say)


def change(entry, path: list, value):
    meta = json.loads((entry.path / "meta.json").read_text())
    node = meta
    for name in path[:-1]:
        node = node[name]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    (entry.path / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["measured", "utility"], 93.0),
        (["measured"], []),
        (["measured"], None),
        (["sha256"], {}),
        (["sha256"], None),
        (["sha256", "weights"], "0" * 64),
        (["seconds"], "1"),
        (["created_at"], "2020-01-01T00:00:00Z"),
        (["identity", "n"], 2),
        (["check"], "0" * 64),
        (["more"], 1),
    ],
    ids=str,
)
def test_a_meta_that_was_changed_is_told_and_made_again(tmp_path, path, value):
    change(ask(tmp_path), path, value)
    said = []
    entry = ask(tmp_path, say=said.append)
    assert entry.built
    assert entry["utility"] == 13.0
    assert len(said) == 1
    assert "is corrupt (" in said[0]


def test_every_flipped_byte_of_a_meta_is_found(tmp_path):
    entry = ask(tmp_path)
    file, rng = entry.path / "meta.json", np.random.default_rng(0)
    content = file.read_bytes()
    meaning = json.loads(content)
    for at in rng.permutation(len(content))[:300]:
        odd = bytearray(content)
        odd[at] ^= 1 << rng.integers(8)
        file.write_bytes(odd)
        try:
            assert cache._read(entry.path) == meaning  # blanks between entries may differ
        except ValueError:
            continue


def test_an_entry_copied_to_another_address_is_not_believed(tmp_path):
    one, two = ask(tmp_path, 1), ask(tmp_path, 2)
    shutil.rmtree(two.path)
    shutil.copytree(one.path, two.path)
    said = []
    assert ask(tmp_path, 2, said.append)["n"] == 2
    assert "that of another entry" in said[0]


@pytest.mark.parametrize("kind", ["file", "pipe", "link"])
def test_files_that_it_should_not_have_are_corruption(tmp_path, kind):
    entry = ask(tmp_path)
    if kind == "file":
        (entry.path / "extra").touch()
    elif kind == "pipe":
        (entry.path / "weights").unlink()
        os.mkfifo(entry.path / "weights")
    else:
        shutil.move(entry.path / "weights", tmp_path / "elsewhere")
        (entry.path / "weights").symlink_to(tmp_path / "elsewhere")
    assert ask(tmp_path).built


def test_an_entry_of_before_there_was_a_check_is_taken(tmp_path):
    change(ask(tmp_path), ["check"], None)
    assert not ask(tmp_path).built


def test_published_files_follow_the_umask_and_keys_are_the_owners(tmp_path):
    old = os.umask(0o022)
    try:
        entry = ask(tmp_path)
    finally:
        os.umask(old)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in entry.path.iterdir()}
    assert modes == {"weights": 0o644, "meta.json": 0o644, "key.safetensors": 0o600}


def test_the_same_key_has_the_same_bytes(tmp_path):
    secret = {name: torch.arange(6.0) for name in "zyxwvu"}
    key = Key(torch.ones(8, dtype=torch.bool), secret, ("layer.weight",))
    for i in range(20):
        save_key(copy.deepcopy(key), tmp_path / f"{i}.safetensors", "uchida", 1)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(20)}) == 1


def test_what_killed_writers_left_is_swept_after_a_day(tmp_path):
    ask(tmp_path)
    stage, aside = tmp_path / "host", []
    for name, age in (("old", 2 * files.DAY), ("new", 60)):
        aside.append(stage / f".{name}0123456789abcd.{os.getpid()}.tmp")
        aside[-1].mkdir()
        (aside[-1] / "weights").touch()
        aside.append(tmp_path / f".{name}.json.01234567.tmp")
        aside[-1].touch()
        for path in aside[-2:]:
            os.utime(path, (time.time() - age,) * 2)
    ask(tmp_path, 2)
    files.swept.cache_clear()
    files.write_text(tmp_path / "a.txt", "a")
    assert [p.exists() for p in aside] == [False, False, True, True]
