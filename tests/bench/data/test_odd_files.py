"""What else lies among images, in folders and parquets: left out and counted, read as meant, or refused in one line."""

from __future__ import annotations

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench import spec
from bench.data import images as sets
from bench.errors import ConfigError, UserError
from tests.helpers import config, tiny


def grey(seed: int, side: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint8)


def folders(root, names=("cat", "dog", "owl"), count=8, write=lambda a, path: Image.fromarray(a).save(path)):
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            write(grey(100 * c + i), root / name / f"{i:02}.png")
    return root


def opened(kind: str, root, cache, **values):
    node = config(f"data={kind}", f"data.path={root}", *(f"data.{k}={v}" for k, v in values.items())).data
    said: list[str] = []
    found = sets.open_images(spec.build(node, "data"), cache, said.append)
    return found, said


def pixels(found) -> torch.Tensor:
    return sets.resident(found, torch.device("cpu"))["train"]


def test_sixteen_bits_are_scaled(tmp_path):
    plain, _ = opened("imagefolder", folders(tmp_path / "8"), tmp_path / "c", image_size=20)
    wide = lambda a, path: Image.fromarray(a.astype(np.uint16) * 257).save(path)  # noqa: E731
    for name in ("png", "tif"):
        write = lambda a, path, name=name: wide(a, path.with_suffix(f".{name}"))  # noqa: E731
        found, _ = opened("imagefolder", folders(tmp_path / name, write=write), tmp_path / "c", image_size=20)
        assert torch.equal(pixels(found), pixels(plain))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, kind):
    write = lambda a, path: Image.fromarray(a.astype(kind)).save(path.with_suffix(".tif"))  # noqa: E731
    with pytest.raises(UserError, match="of an unknown range; save it with 8 bits"):
        opened("imagefolder", folders(tmp_path / "a", write=write), tmp_path / "c")


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    def turned(a, path):
        exif = Image.Exif()
        exif[274] = 6  # a camera held upright: to be turned by 90 degrees
        Image.fromarray(a).rotate(90).save(path, exif=exif)

    plain, _ = opened("imagefolder", folders(tmp_path / "a"), tmp_path / "c", image_size=20)
    found, _ = opened("imagefolder", folders(tmp_path / "b", write=turned), tmp_path / "c", image_size=20)
    assert torch.equal(pixels(found), pixels(plain))


def test_what_others_leave_in_folders_is_left_out_and_counted(tmp_path):
    plain, said = opened("imagefolder", folders(tmp_path / "a"), tmp_path / "c")
    assert said == ["data: decoded 19 + 5 images of 3 classes, a"]
    root = folders(tmp_path / "b")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "cat" / ".ipynb_checkpoints").mkdir()
    Image.fromarray(grey(0)).save(root / "cat" / ".ipynb_checkpoints" / "00-checkpoint.png")
    (root / "__MACOSX").mkdir()
    (root / ".DS_Store").touch()
    (root / "cat" / "._00.png").write_bytes(b"\0\5\26\7")
    (root / "cat" / "notes.txt").touch()
    os.mkfifo(root / "dog" / "pipe.png")  # opened, it would be waited for
    found, said = opened("imagefolder", root, tmp_path / "c")
    assert found.entry["classes"] == ["cat", "dog", "owl"]
    assert torch.equal(pixels(found), pixels(plain))
    assert said == [
        "data: decoded 19 + 5 images of 3 classes, b; ignored: 4 files (.DS_Store, ._00.png, notes.txt, ...), "
        "3 folders (.ipynb_checkpoints, __MACOSX)"
    ]


def test_a_class_may_be_called_train(tmp_path):
    found, _ = opened("imagefolder", folders(tmp_path / "a", ("bus", "car", "train")), tmp_path / "c")
    assert found.entry["classes"] == ["bus", "car", "train"]


@pytest.mark.parametrize("names", [("cat",), ("cat", "empty")])
def test_one_class_and_empty_ones_are_refused(tmp_path, names):
    root = folders(tmp_path / "a", names[:1])
    for name in names[1:]:
        (root / name).mkdir()
    with pytest.raises(ConfigError, match="one class folder, 'cat'" if len(names) == 1 else "empty holds no images"):
        opened("imagefolder", root, tmp_path / "c")


def test_other_programs_are_not_started_for_a_file_called_png(tmp_path):
    root = folders(tmp_path / "a")
    (root / "cat" / "00.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(UserError, match=r"00.png is not a readable image"):
        opened("imagefolder", root, tmp_path / "c")


def encoded(count: int) -> list[bytes]:
    cells = []
    for i in range(count):
        Image.fromarray(grey(i)).save(buffer := io.BytesIO(), "PNG")
        cells.append(buffer.getvalue())
    return cells


def parquet(root, image: pa.Array, label: pa.Array | list):
    root.mkdir()
    pq.write_table(pa.table({"image": image, "label": label}), root / "train-0.parquet")
    return root


BYTES = [("bytes", pa.binary()), ("path", pa.string())]


@pytest.mark.parametrize(
    "kind",
    [pa.large_binary(), pa.struct(BYTES), pa.struct(BYTES[::-1]), pa.struct([("bytes", pa.large_binary())])],
    ids=str,
)
def test_the_image_column_is_found_whatever_wrote_it(tmp_path, kind):
    cells = encoded(24)
    values = [{"bytes": c} for c in cells] if pa.types.is_struct(kind) else cells
    found, _ = opened("parquet", parquet(tmp_path / "p", pa.array(values, kind), [i % 3 for i in range(24)]), tmp_path)
    assert (found.entry["train"], found.entry["test"]) == (19, 5)


@pytest.mark.parametrize(
    ("paths", "label", "said"),
    [
        (True, [i % 3 for i in range(24)], "row 0 holds no bytes of an image"),
        (False, [None, *(i % 3 for i in range(23))], "column 'label' holds nothing in row 0"),
        (False, [[i % 3] for i in range(24)], "column 'label' holds several values in row 0"),
        (False, [1] * 24, "column 'label' holds one class alone, 1"),
    ],
)
def test_a_parquet_without_images_or_labels_is_one_line(tmp_path, paths, label, said):
    cells = [{"bytes": None if paths else c, "path": f"{i}.png"} for i, c in enumerate(encoded(24))]
    root = parquet(tmp_path / "p", pa.array(cells, pa.struct(BYTES)), label)
    with pytest.raises(UserError, match=said):
        opened("parquet", root, tmp_path)


def test_an_attacker_with_one_image_is_refused_before_anything_is_trained(tmp_path):
    from bench.run import prepare

    with pytest.raises(ConfigError, match="the attacker split has 1 image"):
        prepare(tiny(tmp_path, "none", "finetune", "data.train_limit=200", "data.attacker=0.006"))
