"""Pictures with masks: scenes, files of three kinds, splits by blocks, pairs that are drawn together."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench import spec
from bench.data import masks as sets
from bench.data.masks import VOID
from bench.errors import ConfigError, UserError
from bench.store.cache import Cache
from tests.helpers import CPU, config


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(number: int, width: int = 24, height: int = 18, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A picture that shows its mask: class 1 is red, 2 is green."""
    mask = np.kron(np.random.default_rng(number).integers(0, classes, (height // 6, width // 6)), np.ones((6, 6)))
    mask = mask.astype(np.uint8)
    picture = np.zeros((height, width, 3), np.uint8)
    for c in (1, 2):
        picture[mask == c, c - 1] = 200
    return picture, mask


def node(name: str, **values):
    words = [f"data={name}", *(f"data.{k}={v}" for k, v in values.items())]
    return spec.build(config("task=segmentation", *words).data, "data")


def parquet(folder: Path, change=lambda part, i, picture, mask: (picture, mask), **values):
    """A parquet data set of 12 + 4 pictures, changed one by one."""
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 12), ("test", 4)):
        pairs = [change(part, i, *drawn(i + 100 * (part == "test"))) for i in range(count)]
        columns = {
            name: [{"bytes": encoded(pair[j]), "path": f"{i}.png"} for i, pair in enumerate(pairs)]
            for j, name in enumerate(("image", "mask"))
        }
        pq.write_table(pa.table(columns), folder / f"{part}-0.parquet")
    given = {"image_size": 12, "block": 1, "classes": "[a,b,c]", "void": "null"} | values
    return node("camvid", path=folder, **given)


def opened(data, tmp_path):
    return sets.open_masks(data, Cache(str(tmp_path / "cache"), None))


def test_scenes_share_neither_digits_nor_photographs_between_splits(tmp_path, monkeypatch):
    from bench.data import scenes

    used: list[tuple[bytes, frozenset[bytes]]] = []
    make = scenes.Scenes._scenes

    def noted(self, photograph, ink, labels, count, rng):
        used.append((photograph.tobytes(), frozenset(each.numpy().tobytes() for each in ink)))
        return make(self, photograph, ink, labels, count, rng)

    monkeypatch.setattr(scenes.Scenes, "_scenes", noted)
    data = node("scenes", block=4, tests=3, image_size=32)
    entry = opened(data, tmp_path)
    assert (entry["train"], entry["test"], entry["sides"]) == (48, 12, [32, 32])
    assert len({photograph for photograph, _ in used}) == len(used) == 16
    assert sum(len(digits) for _, digits in used) == len(frozenset().union(*(digits for _, digits in used)))
    index = sets.splits(data, entry["train"], entry["test"])
    blocks = {name: {int(i) // 4 for i in index[name]} for name in ("owner", "attacker", "validation")}
    assert sum(map(len, blocks.values())) == len(set().union(*blocks.values())) == 12
    assert all(len(index[name]) == 4 * len(blocks[name]) for name in blocks)


def test_scenes_are_drawn_by_seed_and_kept(tmp_path):
    small = {"block": 3, "tests": 2, "image_size": 32}
    first = opened(node("scenes", **small), tmp_path)
    assert not opened(node("scenes", **small), tmp_path).built
    again = opened(node("scenes", **small), tmp_path / "elsewhere")
    other = opened(node("scenes", **small, seed=1), tmp_path)
    assert sets.digest(first) == sets.digest(again) != sets.digest(other)
    tensors = sets.resident(first, CPU)
    assert tensors["train_masks"].max() == 10
    counts = torch.bincount(tensors["train_masks"].flatten().long(), minlength=11)
    assert (counts > 0).all()
    assert counts[0] > counts[1:].max()
    assert all(len(mask.unique()) > 1 for mask in tensors["train_masks"])


def test_frames_stay_together_by_blocks(tmp_path):
    data = replace(node("scenes"), block=10, validation=0.2, attacker=0.25)
    index = sets.splits(data, 95, 7)  # the last block has five
    owner, attacker, validation = (set(index[n].tolist()) for n in ("owner", "attacker", "validation"))
    assert sorted(owner | attacker | validation) == list(range(95))
    assert len(owner) + len(attacker) + len(validation) == 95
    for part in (owner, attacker, validation):
        assert all((i // 10 * 10 + j) in part for i in part for j in range(10) if i // 10 * 10 + j < 95)
    assert len(validation) in (15, 20)
    assert index["test"].tolist() == list(range(7))
    single = replace(data, block=1)
    assert len(sets.splits(single, 95, 7)["validation"]) == 19
    fewer = sets.splits(replace(data, train_limit=50), 95, 7)
    assert 45 <= sum(len(fewer[n]) for n in ("owner", "attacker", "validation")) <= 50


def test_pictures_and_masks_move_together_and_masks_stay_classes(tmp_path):
    """A picture that shows its mask still does after every flip and crop; what is padded is void."""
    entry = opened(parquet(tmp_path / "set", image_size="null"), tmp_path)
    tensors = sets.resident(entry, CPU)
    for crop, flip in ((0, True), (4, False), (4, True)):
        found = list(sets.batches(tensors["train"], tensors["train_masks"], torch.arange(12), 5, 3, crop, flip))
        assert [len(pictures) for pictures, _ in found] == [5, 5]
        pictures, masks = (torch.cat(part) for part in zip(*found, strict=True))
        assert set(masks.unique().tolist()) <= {0, 1, 2, VOID}
        assert bool((masks == VOID).any()) == bool(crop)
        for c in (1, 2):
            assert torch.equal(masks == c, pictures[:, c - 1] == 200)
        assert (pictures[masks[:, None].expand_as(pictures) == VOID] == 0).all()
        again = list(sets.batches(tensors["train"], tensors["train_masks"], torch.arange(12), 5, 3, crop, flip))
        assert torch.equal(masks, torch.cat([m for _, m in again]))
    whole = list(sets.batches(tensors["train"], tensors["train_masks"], torch.arange(12), 5, None, 4, True))
    assert torch.equal(torch.cat([m for _, m in whole]), tensors["train_masks"])


def test_sides_follow_the_longer_one_and_masks_are_scaled_to_the_nearest(tmp_path):
    entry = opened(parquet(tmp_path / "set", image_size=12), tmp_path)
    assert entry["sides"] == [9, 12]
    assert set(sets.resident(entry, CPU)["train_masks"].unique().tolist()) <= {0, 1, 2}


def test_a_void_value_becomes_void(tmp_path):
    entry = opened(parquet(tmp_path / "set", classes="[a,b]", void=2), tmp_path)
    assert set(sets.resident(entry, CPU)["train_masks"].unique().tolist()) == {0, 1, VOID}


def test_pictures_of_several_shapes_go_into_a_square(tmp_path):
    def turned(part, i, picture, mask):
        return (picture.transpose(1, 0, 2).copy(), mask.T.copy()) if i == 1 else (picture, mask)

    def larger(part, i, picture, mask):
        return (picture.repeat(2, 0).repeat(2, 1), mask.repeat(2, 0).repeat(2, 1)) if i == 1 else (picture, mask)

    entry = opened(parquet(tmp_path / "set", turned, image_size=24), tmp_path)
    assert entry["sides"] == [24, 24]
    tensors = sets.resident(entry, CPU)
    assert (tensors["train_masks"][0, 18:] == VOID).all()
    assert (tensors["train_masks"][1, :, 18:] == VOID).all()
    assert (tensors["train_masks"][1, :, :18] != VOID).all()
    with pytest.raises(UserError, match=r"not all of one shape.*set data.image_size"):
        opened(parquet(tmp_path / "set", larger, image_size="null"), tmp_path)


@pytest.mark.parametrize(
    ("change", "values", "said"),
    [
        (lambda p, i, x, m: (x, m[:12] if i == 2 else m), {}, "row 2: the picture is 24x18 and its mask 24x12"),
        (lambda p, i, x, m: (x, m + 5 * (i == 3)), {}, "mask 3 of train has class"),
        (lambda p, i, x, m: (x, m), {"classes": "[a,b]"}, "has class 2, and there are 2 (0 to 1): name more in"),
        (lambda p, i, x, m: (x, x), {}, "the mask (RGB) has no numbers of classes"),
        (lambda p, i, x, m: (x, m), {"classes": "[a]"}, "data.classes=['a']: needs two names at least"),
        (lambda p, i, x, m: (x, m), {"mask_column": "masks"}, "data.mask_column: no column 'masks'"),
        (lambda p, i, x, m: (x, m), {"train": "'no*'"}, "no parquet file matches data.train='no*'"),
    ],
)
def test_masks_that_do_not_fit_are_one_line_and_leave_nothing(tmp_path, change, values, said):
    with pytest.raises(UserError) as told:
        opened(parquet(tmp_path / "set", change, **values), tmp_path)
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.glob("cache/masks/*/meta.json"))


def test_columns_that_hold_no_images_are_one_line(tmp_path):
    data = parquet(tmp_path / "set")
    pq.write_table(pa.table({"image": [1, 2], "mask": [3, 4]}), tmp_path / "set" / "train-0.parquet")
    with pytest.raises(ConfigError, match=r"column 'image' of train-0.parquet holds int64, no encoded images"):
        opened(data, tmp_path)
    (tmp_path / "set" / "train-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is no parquet file"):
        opened(data, tmp_path)


def test_cityscapes_in_its_own_folders(tmp_path):
    """Numbers of labels become those that are scored; what is not, is void."""
    for part, count in (("train", 3), ("val", 2)):
        for kind, name in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            folder = tmp_path / "city" / kind / part / "aachen"
            folder.mkdir(parents=True)
            for i in range(count):
                mask = np.full((16, 32), 7, np.uint8)  # road
                mask[:4], mask[4:6], mask[6:8] = 23, 3, 0  # sky, out of the region, unlabelled
                pixels = mask if kind == "gtFine" else np.repeat(mask[..., None], 3, 2)
                (folder / f"aachen_00000{i}_000019_{name}.png").write_bytes(encoded(pixels))
    entry = opened(node("cityscapes", path=tmp_path / "city", image_size=32, block=1), tmp_path)
    assert (len(entry["classes"]), entry["classes"][0], entry["classes"][10]) == (19, "road", "sky")
    assert (entry["train"], entry["test"], entry["sides"]) == (3, 2, [16, 32])
    mask = sets.resident(entry, CPU)["train_masks"][0]
    assert [int(mask[row, 0]) for row in (0, 4, 6, 9)] == [10, VOID, VOID, 0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no leftImg8bit/train"):
        opened(node("cityscapes", path=tmp_path / "empty"), tmp_path)


def test_voc_in_its_own_folders_and_nothing_is_downloaded_unasked(tmp_path):
    root = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for part, names in (("train", "abc"), ("val", "de")):
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            sides = (16, 24) if i % 2 else (24, 16)
            mask = np.full(sides, 15, np.uint8)
            mask[:2] = 255
            Image.fromarray(np.zeros((*sides, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    entry = opened(node("voc", path=tmp_path / "voc", image_size=24), tmp_path)
    assert (len(entry["classes"]), entry["classes"][15]) == (21, "person")
    assert (entry["train"], entry["test"], entry["sides"]) == (3, 2, [24, 24])
    mask = sets.resident(entry, CPU)["train_masks"][0]
    assert [int(mask[0, 0]), int(mask[5, 5]), int(mask[5, 20])] == [VOID, 15, VOID]
    with pytest.raises(ConfigError, match=r"holds no VOCdevkit/VOC2012.*data.download=true fetches it"):
        opened(node("voc", path=tmp_path / "nothing"), tmp_path)
