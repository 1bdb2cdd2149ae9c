"""A table of paths and labels: what it may look like, and what is said of what it lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import spec
from bench.data import images as sets
from bench.data import pictures
from bench.errors import UserError
from bench.store.cache import Cache
from tests.helpers import config

NAMES = ("cat", "dog", "owl")


def table(root: Path, head: str = "path,label", rows: list[str] | None = None, count: int = 12) -> Path:
    """labels.csv in `root`, by default a row for each of `count` pictures below it."""
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((16, 16, 3), 20 * i, np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{i:02}.png")
    rows = [f"pictures/{i:02}.png,{NAMES[i % 3]}" for i in range(count)] if rows is None else rows
    (root / "labels.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return root / "labels.csv"


def opened(path: Path, cache: Path, *words: str):
    node = config("data=csv", f"data.path={path}", "data.image_size=16", *words).data
    said: list[str] = []
    found = sets.open_images(spec.build(node, "data"), cache, said.append)
    return found, sets.resident(found, torch.device("cpu")), said


def test_rows_are_read_and_counted_by_class(tmp_path):
    found, tensors, said = opened(table(tmp_path), tmp_path / "c")
    assert found.entry["classes"] == ["cat", "dog", "owl"]
    assert said == ["data: decoded 10 + 2 images of 3 classes (cat 4, dog 4, owl 4), labels"]
    for images, labels in (("train", "train_labels"), ("test", "test_labels")):
        for image, label in zip(tensors[images], tensors[labels], strict=True):
            assert int(image[0, 0, 0]) // 20 % 3 == int(label)


def test_a_column_of_splits_decides(tmp_path):
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    rows = [f"pictures/{i:02}.png,{i % 3},{split}" for i, split in enumerate(splits)]
    found, tensors, _ = opened(table(tmp_path, "path,label,split", rows), tmp_path / "c")
    assert (tensors["test"][:, 0, 0, 0] // 20).tolist() == [9, 10, 11]
    assert (tensors["train"][:, 0, 0, 0] // 20).tolist() == [*range(9)]  # validation is drawn from training
    rows = [row for row in rows if "test" not in row]
    other, tensors, _ = opened(table(tmp_path, "path,label,split", rows), tmp_path / "c")
    assert (tensors["test"][:, 0, 0, 0] // 20).tolist() == [6, 7, 8]
    assert found.digest != other.digest


def test_other_names_other_folders_other_signs(tmp_path):
    table(tmp_path)
    rows = [f"{i:02}.png;{10 + i % 3}" for i in range(12)]
    place = tmp_path / "elsewhere.csv"
    place.write_text("\n".join(["\ufefffile; class", *rows]), encoding="utf-8")
    words = [f"data.root={tmp_path}/pictures", "data.path_column=file", "data.label_column=class"]
    found, _, _ = opened(place, tmp_path / "c", *words)
    assert found.entry["classes"] == ["10", "11", "12"]
    by_words, _, _ = opened(table(tmp_path), tmp_path / "c")
    assert found.digest == by_words.digest  # the same images, labels and splits
    assert spec.digest(found.identity) == spec.digest(by_words.identity)


def test_pictures_for_restoration(tmp_path):
    node = config("data=csv", f"data.path={table(tmp_path)}").data
    train, test = spec.build(node, "data").pictures()
    assert (len(train), len(test), train[0].shape) == (10, 2, (16, 16, 3))
    assert pictures.open_pictures(spec.build(node, "data"), Cache(str(tmp_path / "c"), None), print)["train"] == 10


@pytest.mark.parametrize(
    ("head", "rows", "expected"),
    [
        ("file,label", None, "data.path_column: .*has no column 'path'; its header has file, label"),
        ("path,class", None, "data.label_column: .*has no column 'label'; its header has path, class"),
        ("path,label", [], "has no rows below its header"),
        ("path,label", ["a.png,cat", "b.png,dog"], r"is not there: .*a\.png \(line 2\), .*b\.png \(line 3\)$"),
        ("path,label", [f"{i}.png,cat" for i in range(9)], r"2\.png \(line 4\) and 6 more$"),
        ("path,label", ["pictures/00.png,cat"] * 2, r"stands there twice: .*00\.png \(line 3\)$"),
        ("path,label", ["pictures/00.png,"], r"has no label: .*00\.png \(line 2\)$"),
        ("path,label", [",cat"], "line 2: no path"),
        ("path,label", ["pictures/00.png,cat,dog"], "line 2: too many cells"),
        ("path,label", ["pictures/00.png,cat", "pictures/01.png,cat"], "holds one class alone, 'cat'"),
        ("path,label,split", ["pictures/00.png,cat,tests"], "split=tests: not known; did you mean 'test'"),
        ("path,label,split", ["pictures/00.png,cat,train", "pictures/01.png,dog"], "line 3: no split, which other"),
        ("path,label,split", ["pictures/00.png,cat,test"], "every row is of the test set, none of train"),
    ],
)
def test_what_a_table_lacks_is_one_line(tmp_path, head, rows, expected):
    with pytest.raises(UserError, match=expected) as raised:
        opened(table(tmp_path, head, rows), tmp_path / "c")
    assert raised.value.code == 2
    assert not [*(tmp_path / "c").glob("data/*/")]


def test_a_folder_in_place_of_a_table_names_the_table(tmp_path):
    table(tmp_path)
    with pytest.raises(UserError, match=r"is a folder: give the table, .*/labels\.csv"):
        opened(tmp_path, tmp_path / "c")


def test_all_images_that_cannot_be_read_are_named(tmp_path):
    path = table(tmp_path)
    for i in (3, 7):
        (tmp_path / "pictures" / f"{i:02}.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"03\.png is not a readable image: .*; nor are .*07\.png$"):
        opened(path, tmp_path / "c")
    for i in range(12):
        (tmp_path / "pictures" / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"09\.png, 2 more$"):
        opened(path, tmp_path / "c")
