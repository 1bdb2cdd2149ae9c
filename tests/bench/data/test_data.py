"""Data sets, splits and augmentation."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import run, spec
from bench.data.images import Images, augment, open_images
from bench.data.source import Data, split_indices
from bench.errors import ConfigError, UserError
from tests.helpers import config, load_tensors, tiny


def png(seed: int, size: tuple[int, int] = (20, 20), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def node(name: str, **values) -> Data:
    words = [f"data={name}", *(f"data.{k}={v}" for k, v in values.items())]
    return spec.build(config(*words).data, "data")


@given(st.integers(20, 3000), st.floats(0, 0.5), st.floats(0.05, 0.9), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_splits_are_disjoint_and_complete(n, validation, attacker, seed):
    d = replace(node("digits"), validation=validation, attacker=attacker, split_seed=seed)
    try:
        splits = split_indices(d, n, 10)
    except ConfigError:
        return
    parts = [splits[name].tolist() for name in ("owner", "attacker", "validation")]
    assert sorted(i for part in parts for i in part) == list(range(n))
    assert len(splits["validation"]) == round(n * validation)
    assert splits["test"].tolist() == list(range(10))
    few = split_indices(replace(d, test_limit=50), n, 1000)["test"]
    assert len(set(few.tolist())) == 50
    assert few.max() > 500  # drawn from all of it, not cut off


def test_digits_are_the_default_eighty_twenty(results):
    x = run.prepare(tiny(results, "none", "none", "data.test_limit=null"))
    assert x.task.size("owner") == pytest.approx(4 * x.task.size("attacker"), abs=4)
    assert sum(map(x.task.size, ("owner", "attacker", "validation", "test"))) == 1797
    (images, labels) = next(x.task.batches("test", 400))
    assert images.dtype == torch.uint8
    assert images.shape == (359, 3, 32, 32)
    assert labels.bincount().min() > 20


@given(st.integers(1, 6), st.integers(0, 4), st.booleans(), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_augmentation_shifts_and_mirrors_whole_images(n, crop, flip, seed):
    images = torch.randint(1, 256, (n, 3, 9, 9), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    out = augment(images, crop, flip, torch.Generator().manual_seed(seed))
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    padded = torch.nn.functional.pad(images, (crop,) * 4)
    for i in range(n):
        windows = [
            w if not m else w.flip(-1)
            for a in range(2 * crop + 1)
            for b in range(2 * crop + 1)
            for m in ((False, True) if flip else (False,))
            for w in [padded[i, :, a : a + 9, b : b + 9]]
        ]
        assert any(torch.equal(out[i], w) for w in windows)


def test_augmentation_reaches_every_shift_and_both_sides():
    image = torch.arange(1, 82, dtype=torch.uint8).view(1, 1, 9, 9).expand(4000, 1, 9, 9)
    out = augment(image, 1, True, torch.Generator().manual_seed(0))
    assert len({tuple(o.flatten().tolist()) for o in out}) == 9 * 2


def test_batches_shuffle_by_seed_and_leave_order_without(results):
    x = run.prepare(tiny(results, "none", "none"))

    def labels(seed):
        return torch.cat([y for _, y in x.task.batches("owner", 64, seed)])

    assert torch.equal(labels(1), labels(1))
    assert not torch.equal(labels(1), labels(2))
    assert len(labels(1)) == x.task.size("owner") // 64 * 64
    assert len(labels(None)) == x.task.size("owner")


@pytest.fixture
def parquet(tmp_path):
    def write(name: str, n: int, *, labels=None, image="img", label="label", names=("cat", "dog"), broken=None):
        cells = [{"bytes": b"no image" if i == broken else png(i), "path": f"{i}.png"} for i in range(n)]
        schema = pa.schema(
            {
                image: pa.struct({"bytes": pa.binary(), "path": pa.string()}),
                label: pa.int64() if names is not None else pa.string(),
            }
        )
        info = {"info": {"features": {label: {"names": list(names), "_type": "ClassLabel"}}}} if names else {}
        schema = schema.with_metadata({b"huggingface": json.dumps(info).encode()})
        values = labels or [i % 2 for i in range(n)]
        pq.write_table(pa.table({image: cells, label: values}, schema=schema), tmp_path / name)
        return tmp_path

    return write


def open_(d: Data, cache) -> tuple[Images, list[str]]:
    said = []
    return open_images(d, cache, said.append), said


def test_parquet_layout(parquet, tmp_path):
    parquet("train-00000-of-00002.parquet", 7)
    parquet("train-00001-of-00002.parquet", 5)
    root = parquet("test-00000-of-00001.parquet", 4)
    images, said = open_(node("parquet", path=root), tmp_path / "cache")
    assert images.entry["classes"] == ["cat", "dog"]
    assert (images.entry["train"], images.entry["test"], images.entry["image_size"]) == (12, 4, 20)
    expected = np.asarray(Image.open(io.BytesIO(png(3)))).transpose(2, 0, 1)
    assert (load_tensors(images.entry.path)["train"][3].numpy() == expected).all()
    assert load_tensors(images.entry.path)["train_labels"][:4].tolist() == [0, 1, 0, 1]
    mean = load_tensors(images.entry.path)["train"].double().mean((0, 2, 3))
    np.testing.assert_allclose(images.entry["mean"], mean, rtol=1e-9)
    np.testing.assert_allclose(
        images.entry["std"], load_tensors(images.entry.path)["train"].double().std((0, 2, 3)), rtol=1e-3
    )
    assert len(said) == 1
    again, said = open_(node("parquet", path=root), tmp_path / "cache")
    assert said == []
    # the digest is the content's, not the place's
    (tmp_path / "moved").mkdir()
    for p in root.glob("*.parquet"):
        (tmp_path / "moved" / p.name).write_bytes(p.read_bytes())
    moved, _ = open_(node("parquet", path=tmp_path / "moved"), tmp_path / "cache")
    assert moved.identity == again.identity


def test_parquet_with_string_labels_other_columns_and_no_test(parquet, tmp_path):
    labels = ["b", "a"] * 5
    root = parquet("train.parquet", 10, labels=labels, image="photo", label="species", names=None)
    d = node("parquet", path=root, image_column="photo", label_column="species")
    images, _ = open_(d, tmp_path / "cache")
    assert images.entry["classes"] == ["a", "b"]
    assert (images.entry["train"], images.entry["test"]) == (8, 2)


def test_parquet_folders_named_after_their_split(parquet, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    parquet("train/0000.parquet", 6)
    root = parquet("test/0000.parquet", 3)
    images, _ = open_(node("parquet", path=root), tmp_path / "cache")
    assert (images.entry["train"], images.entry["test"]) == (6, 3)
    with pytest.raises(ConfigError, match=r"no parquet file matches data\.test='tset\*'"):
        open_(node("parquet", path=root, test="tset*"), tmp_path / "cache")
    with pytest.raises(ConfigError, match="train and test must be apart"):
        open_(node("parquet", path=root, train="*"), tmp_path / "cache")


def test_labels_out_of_range_are_not_silently_wrong(parquet, tmp_path):
    parquet("train.parquet", 6)
    root = parquet("test.parquet", 3, labels=[-1, 0, 1])
    with pytest.raises(UserError, match="label -1 in column 'label' is none of the 2 classes"):
        open_(node("parquet", path=root), tmp_path / "cache")


def test_integer_labels_without_names_keep_their_order(parquet, tmp_path):
    root = parquet("train.parquet", 12, labels=[2, 10, 7] * 4, names=())
    images, _ = open_(node("parquet", path=root), tmp_path / "cache")
    assert images.entry["classes"] == ["2", "7", "10"]


def test_parquet_complaints(parquet, tmp_path):
    with pytest.raises(ConfigError, match="no parquet file matches"):
        open_(node("parquet", path=tmp_path), tmp_path / "cache")
    root = parquet("train.parquet", 4, image="img", label="klass")
    with pytest.raises(ConfigError, match=r"data\.label_column: no label column .*valid: img, klass"):
        open_(node("parquet", path=root), tmp_path / "cache")
    with pytest.raises(ConfigError, match="no column 'imgg'"):
        open_(node("parquet", path=root, image_column="imgg"), tmp_path / "cache")
    parquet("train.parquet", 4, broken=2)
    with pytest.raises(UserError, match="row 2 is not a readable image"):
        open_(node("parquet", path=root), tmp_path / "cache")
    (tmp_path / "train.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match="no parquet file"):
        open_(node("parquet", path=root), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache" / "data").iterdir() if p.suffix != ".lock"]


@pytest.mark.parametrize("split", [True, False])
def test_imagefolder(tmp_path, split):
    for part, n in (("train", 10), ("val", 4)) if split else ((".", 10),):
        for c in ("ant", "bee"):
            (tmp_path / "d" / part / c).mkdir(parents=True)
            for i in range(n):
                content = png(i, (30 + i, 25), "L" if i % 2 else "RGB")
                (tmp_path / "d" / part / c / f"{i}.png").write_bytes(content)
    images, _ = open_(node("imagefolder", path=tmp_path / "d", image_size=16), tmp_path / "cache")
    assert images.entry["classes"] == ["ant", "bee"]
    assert (images.entry["train"], images.entry["test"]) == ((20, 8) if split else (16, 4))
    assert load_tensors(images.entry.path)["train"].shape[1:] == (3, 16, 16)
    with pytest.raises(ConfigError, match="not all of one square size"):
        open_(node("imagefolder", path=tmp_path / "d", image_size="null"), tmp_path / "cache")


def test_imagefolder_without_classes(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(ConfigError, match="holds no class folders"):
        open_(node("imagefolder", path=tmp_path), tmp_path / "cache")


def test_too_few_images_for_the_splits():
    with pytest.raises(ConfigError, match="attacker split is empty"):
        split_indices(replace(node("digits"), attacker=0.0), 100, 10)


def test_torchvision_cifar_is_read_when_it_is_there(monkeypatch, tmp_path):
    import pickle

    import torchvision

    root = tmp_path / "downloads" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 3072), dtype=np.uint8)
        with open(root / name, "wb") as file:
            pickle.dump({"data": pixels, "labels": [j % 10 for j in range(20)]}, file)
    with open(root / "batches.meta", "wb") as file:
        pickle.dump({"label_names": [f"class{i}" for i in range(10)]}, file)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a: True)
    images, _ = open_(node("cifar10", root=tmp_path / "downloads"), tmp_path / "cache")
    assert (images.entry["train"], images.entry["test"], len(images.entry["classes"])) == (100, 20, 10)
    assert load_tensors(images.entry.path)["train"].shape == (100, 3, 32, 32)


def test_decoded_images_are_mapped_and_survive_being_made_again(tmp_path):
    """Processes share the pages; who has a file open keeps it when the entry is replaced."""
    cfg = config("data=digits", f"results_dir={tmp_path}")
    images = open_images(spec.build(cfg.data, "data"), tmp_path / "cache")
    first = load_tensors(images.entry.path)
    kept = first["train"].clone()
    assert str(images.entry.path) in Path("/proc/self/maps").read_text()
    (images.entry.path / "meta.json").write_text("{")
    open_images(spec.build(cfg.data, "data"), tmp_path / "cache")
    assert (first["train"] == kept).all()
    assert (load_tensors(images.entry.path)["train"] == kept).all()
