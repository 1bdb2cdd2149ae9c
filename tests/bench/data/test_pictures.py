"""Pictures and patches."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench import spec
from bench.data import pictures
from bench.errors import ConfigError
from bench.store.cache import Cache
from tests.helpers import CPU, SIZES, config, picture


def test_a_patch_is_a_slice_of_its_picture_and_a_flipped_one_its_mirror_image(opened, picture_folder):
    whole = pictures.resident(opened.clean, CPU)
    assert sorted(map(tuple, whole.sizes.tolist())) == sorted((h, w) for w, h in SIZES)
    rng = np.random.default_rng(0)
    which = torch.from_numpy(rng.integers(0, len(SIZES), 50))
    free = whole.sizes[which] - 16
    top, left = (torch.from_numpy(rng.integers(0, free[:, axis].numpy() + 1)) for axis in (0, 1))
    mirrored = torch.from_numpy(rng.random(50) < 0.5)
    found = whole.patches(which, top, left, 16, mirrored)
    assert found.dtype == torch.uint8
    for i, t, x, m, patch in zip(which, top, left, mirrored, found, strict=True):
        height, width = whole.sizes[i].tolist()
        plane = whole.pixels[whole.starts[i] : whole.starts[i] + 3 * height * width].view(3, height, width)
        expected = plane[:, t : t + 16, x : x + 16]
        assert torch.equal(patch, expected.flip(2) if m else expected)
    files = {np.asarray(Image.open(p)).transpose(2, 0, 1).tobytes() for p in picture_folder.iterdir()}
    ends = whole.starts + 3 * whole.sizes.prod(1)
    assert {whole.pixels[a:b].numpy().tobytes() for a, b in zip(whole.starts, ends, strict=True)} == files


# Data


def test_the_offline_default_is_in_the_wheel(tmp_path):
    cfg = config("task=restoration", f"results_dir={tmp_path}")
    train, test = spec.build(cfg.data, "data").pictures()
    assert (len(train), len(test)) == (12, 4)
    assert all(64 <= side <= 512 for p in [*train, *test] for side in p.shape[:2])
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in [*train, *test])


def test_a_parquet_test_set_without_labels_is_held_out_from(tmp_path):
    cells = []
    for i, size in enumerate(SIZES):
        file = io.BytesIO()
        picture(i, size).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"image": cells}), tmp_path / "test-00000-of-00001.parquet")
    said: list[str] = []
    more = ("data=parquet", f"data.path={tmp_path}")
    cfg = config("task=restoration", "task.patch=40", *more)
    opened = spec.build(cfg.task, "task").open(
        spec.build(cfg.data, "data"), Cache(str(tmp_path / "cache"), None), CPU, said.append
    )
    assert (opened.clean["train"], opened.clean["test"]) == (9, 2)
    left = sum(min(size) < 40 for size in SIZES)
    assert said[1] == f"data: {left} pictures are smaller than 40x40 and left out"
    assert sum(len(index) for index in opened.index.values()) == len(SIZES) - left
    with pytest.raises(ConfigError, match=r"data\.image_column: no column 'photo'"):
        replace(opened.data, image_column="photo").pictures()


def test_a_folder_of_test_pictures_is_the_test_set(tmp_path):
    for i, part in enumerate(["train/a", "train/b", "train", "val", "val/deeper"]):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        picture(i, (40 + i, 40)).save(tmp_path / part / f"{i}.png")
    data = spec.build(config("data=imagefolder", f"data.path={tmp_path}").data, "data")
    train, test = data.pictures()
    assert [p.shape[1] for p in train] == [42, 40, 41]
    assert [p.shape[1] for p in test] == [43, 44]
    (tmp_path / "val" / "3.png").write_bytes(b"no picture")
    from bench.errors import UserError

    with pytest.raises(UserError, match=r"3\.png is not a readable image"):
        data.pictures()
