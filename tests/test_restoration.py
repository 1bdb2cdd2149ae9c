"""Image restoration: pictures and patches, pairs, metrics, networks, and the contract of methods and attacks on it."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from bench import degradations, metrics, networks, pictures, run, spec
from bench.cache import Cache
from bench.tasks.restoration import UNIT, Restoration, RestorationTask
from bench.types import ConfigError
from tests.conftest import ATTACKS, SMALL, WHITE_BOX, command, config
from tests.test_contract import COMPLETE, facts

CPU = torch.device("cpu")
SIZES = [(48, 64), (50, 37), (64, 48), (40, 40), (33, 70), (48, 48), (64, 64), (35, 51), (48, 50), (70, 33), (40, 60)]
MARKING = [m for m in WHITE_BOX if m != "none"]
# Each attack once, the methods in turn; the slow test has all pairs.
PAIRS = [(WHITE_BOX[i % len(WHITE_BOX)], attack) for i, attack in enumerate(ATTACKS)]


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """A smooth picture (width, height) of its own."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate(SIZES):
        picture(i, size).save(root / f"{i:02}.png")
    return root


def words(folder: Path) -> list[str]:
    """A small restoration task on pictures of many sizes, and a network of 120,000 weights."""
    data = ["task=restoration", "task.patch=16", "data=imagefolder", f"data.path={folder}", "data.label=small"]
    model = ["model=unet", "model.width=16", "model.depth=2"]
    return [*data, "data.attacker=0.4", *model, "train.epochs=40", "train.batch_size=12", "train.lr=0.01", "device=cpu"]


def small(results: Path, folder: Path, method: str, attack: str, *more: str):
    names = [f"method={method}", f"attack={attack}"]
    cfg = config(*names)
    strengths = SMALL | {"n_bits": "32", "k": "64"}  # as few bits as can be detected: few steps embed them
    less = [f"{g}.{k}={v}" for g in ("method", "attack") for k, v in strengths.items() if k in cfg[g]]
    student = ["attack.student.width=8", "attack.student.depth=3"] if attack == "distill" else []
    return config(*names, *words(folder), *less, *student, f"results_dir={results}", *more)


def task(folder: Path, results: Path, *more: str, say=lambda line: None) -> RestorationTask:
    cfg = config(*words(folder), *more)
    return spec.build(cfg.task, "task").open(
        spec.build(cfg.data, "data"), Cache(str(results / "cache"), None), CPU, say
    )


@pytest.fixture
def opened(folder, results) -> RestorationTask:
    return task(folder, results)


# Pictures and patches


def test_a_patch_is_a_slice_of_its_picture_and_a_flipped_one_its_mirror_image(opened, folder):
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
    files = {np.asarray(Image.open(p)).transpose(2, 0, 1).tobytes() for p in folder.iterdir()}
    ends = whole.starts + 3 * whole.sizes.prod(1)
    assert {whole.pixels[a:b].numpy().tobytes() for a, b in zip(whole.starts, ends, strict=True)} == files


def test_splits_are_disjoint_by_picture_and_count_disjoint_patches(opened):
    splits = {name: set(at.tolist()) for name, at in opened.index.items()}
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == len(SIZES)
    sizes = pictures.resident(opened.clean, CPU).sizes
    for name, members in splits.items():
        tiles = [clean for _, clean in opened.batches(name, 7)]
        count = sum(int(h) // 16 * (int(w) // 16) for h, w in sizes[sorted(members)])
        assert sum(map(len, tiles)) == opened.size(name) == count
    with pytest.raises(PermissionError, match="attacker may not draw from the owner split"):
        opened.view("attacker").batches("owner", 4)
    with pytest.raises(PermissionError):
        opened.view("attacker").view("judge")


def test_tiles_cover_a_picture_once(folder, results):
    one = task(folder, results, "task.sigma=0")
    whole = pictures.resident(one.clean, CPU)
    place = int(one.index["test"][0])
    height, width = whole.sizes[place].tolist()
    plane = whole.pixels[whole.starts[place] :][: 3 * height * width].view(3, height, width)
    rows, columns = height // 16, width // 16
    top, left = (height - rows * 16) // 2, (width - columns * 16) // 2
    middle = plane[:, top : top + rows * 16, left : left + columns * 16]
    degraded, clean = (torch.cat(x) for x in zip(*one.batches("test", 5), strict=True))
    tiles = clean[: rows * columns].view(rows, columns, 3, 16, 16).permute(2, 0, 3, 1, 4)
    assert torch.equal(tiles.reshape(3, rows * 16, columns * 16), middle)
    assert torch.equal(degraded, clean)  # noise of size 0


@pytest.mark.parametrize("kind", ["noise", "jpeg", "rain"])
def test_measured_pairs_never_change_and_training_pairs_follow_their_seed(folder, results, kind):
    one = task(folder, results, f"task.degradation={kind}")

    def pairs(t, split, size, seed=None):
        return [torch.cat(x) for x in zip(*t.batches(split, size, seed), strict=True)]

    measured = pairs(one, "test", 64)
    again = pairs(task(folder, results, f"task.degradation={kind}", "task.eval_batch=3"), "test", 5)
    assert all(map(torch.equal, measured, again))
    assert not torch.equal(*measured)
    first, same, other = (pairs(one.view("owner"), "owner", 16, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, same))
    assert not torch.equal(first[1], other[1])
    assert len(first[0]) == one.size("owner") // 16 * 16
    assert all(x.dtype == torch.uint8 and x.shape[1:] == (3, 16, 16) for x in first)


def test_jpeg_is_done_to_whole_pictures(folder, results):
    one = task(folder, results, "task.degradation=jpeg", "task.quality=5")
    clean, kept = (pictures.resident(entry, CPU) for entry in (one.clean, one.degraded))
    for start, (height, width) in zip(clean.starts.tolist(), clean.sizes.tolist(), strict=True):
        plane, made = (p.pixels[start : start + 3 * height * width].view(3, height, width) for p in (clean, kept))
        file = io.BytesIO()
        Image.fromarray(plane.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=5)
        assert np.array_equal(np.asarray(Image.open(file)), made.permute(1, 2, 0).numpy())
    other = task(folder, results, "task.degradation=jpeg", "task.quality=50")
    assert other.identity != one.identity


def test_noise_has_its_size_and_rain_only_brightens():
    grey = torch.full((64, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = degradations.noise(grey, torch.Generator().manual_seed(0), 25.0).float()
    # 196,608 values; the standard error of their deviation is 25 / sqrt(2 * 196,608) = 0.04, rounding adds 1/12.
    assert noisy.std().item() == pytest.approx(math.sqrt(25**2 + 1 / 12), abs=0.2)
    assert noisy.mean().item() == pytest.approx(128, abs=0.3)
    rng = torch.Generator().manual_seed(0)
    wet = degradations.rain(grey, rng, density=0.004, length=21, tilt=30.0, strength=0.6)
    assert (wet >= grey).all()
    assert torch.equal(wet[:, 0], wet[:, 1])
    assert 0.02 < (wet > grey).float().mean() < 0.3
    dry = degradations.rain(grey, torch.Generator().manual_seed(0), density=0.0, length=21, tilt=30.0, strength=0.6)
    assert torch.equal(dry, grey)


def test_streaks_are_lines_of_their_length_at_their_angle():
    upright, level = degradations.streaks(torch.tensor([0.0, math.pi / 2]), 10)
    assert upright.sum().item() == pytest.approx(21, abs=1e-3)
    assert torch.allclose(upright[:, 10], torch.ones(21), atol=1e-5)
    assert torch.allclose(level, upright.T, atol=1e-5)


# Metrics, losses


def identity_model(value=lambda x: x.float()) -> torch.nn.Module:
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("input_mean", torch.zeros(1))

        def forward(self, images):
            return value(images)

    return Net()


def test_psnr_is_that_of_all_tiles_and_ssim_their_mean(folder, results, opened):
    degraded, clean = (torch.cat(x).double() for x in zip(*opened.batches("test", 64), strict=True))
    expected = 10 * math.log10(255**2 / (degraded - clean).square().mean().item())
    assert opened.utility(identity_model()) == pytest.approx(expected, abs=1e-4)
    assert 18 < expected < 23  # 20 log10(255 / 25) = 20.2; clipping lets it rise
    black = opened.utility(identity_model(torch.zeros_like))
    assert opened.utility(identity_model(lambda x: x.float() * math.nan)) == black
    assert opened.utility(identity_model(lambda x: x.float() + math.inf)) == black
    assert opened.utility(identity_model(lambda x: x.float() + 0.4)) == pytest.approx(expected, abs=1e-4)
    structure = task(folder, results, "task.metric=ssim")
    assert 0 < structure.utility(identity_model()) < 0.9
    assert structure.utility_name == "ssim"
    untouched = [task(folder, results, "task.sigma=0", f"task.metric={m}") for m in ("psnr", "ssim")]
    assert [t.utility(identity_model()) for t in untouched] == [100, pytest.approx(1)]


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_counts_pixel_values_in_units_and_a_student_sees_no_clean_picture(opened, loss):
    one = replace(opened, config=replace(opened.config, loss=loss))
    degraded, clean = next(one.batches("owner", 8))
    away = identity_model(lambda x: clean.float() + 2 * UNIT)
    assert one.loss(away, (degraded, clean)).item() == pytest.approx(2)  # l2: 2^2 / 2
    assert one.loss(identity_model(lambda x: clean), (degraded, clean)).item() == 0
    assert one.divergence(clean + 2 * UNIT, clean).item() == pytest.approx(2)
    teacher = identity_model(lambda x: x.float() + 300)  # its pictures are white
    white = identity_model(lambda x: torch.full(x.shape, 255.0))
    assert one.distill(white, teacher, (degraded, None)).item() == 0


# Networks


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_networks_start_as_the_identity_and_take_every_fitting_size(name):
    model = networks.Restorer(name, None, 4, 3, None)
    net = networks.build(model, 0).eval()
    for height, width in ((model.multiple * 4, model.multiple * 6), (model.multiple * 5, model.multiple * 4)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.allclose(net(images), images.float(), atol=1e-3)
    same, other = networks.build(model, 0).state_dict(), networks.build(model, 1).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), same.values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(same.values(), other.values(), strict=True))
    net.train()(images).square().mean().backward()
    assert net.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_presets_build_and_offer_a_carrier_outside_the_head(name):
    from methods import layers

    net = networks.build(spec.build(config("task=restoration", f"model={name}").model, "model"), 0)
    chosen = layers.choose(net, None, torch.Tensor.numel, 16_384, "weights")
    assert chosen in layers.candidates(net)
    assert not any(candidate.startswith("head") for candidate in layers.candidates(net))
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 3, 64, 64)


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
    from bench.types import UserError

    with pytest.raises(UserError, match=r"3\.png is not a readable image"):
        data.pictures()


# The contract of methods and attacks


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "uchida" else COMPLETE) for m in MARKING])
def test_marks_are_embedded_and_hosts_are_not_detected(results, folder, method):
    x = run.prepare(small(results, folder, method, "none"))
    entry, host = run.mark(x), run.host(x)
    assert entry["ber"] == 0
    _, key = run.victim(x, entry)
    log10_p = run.judge(x, run.load_weights(run.skeleton(x), host.path), key)[1]
    assert log10_p > -6
    untrained = x.task.utility(run.fresh(x))
    assert min(host["utility"], entry["utility"]) > untrained + 2  # dB: both learned to restore


@pytest.mark.parametrize(
    ("method", "attack"), [pytest.param(*pair, marks=() if pair[0] == "uchida" else COMPLETE) for pair in PAIRS]
)
def test_attacks_run_or_say_why_not_and_repeat_bit_for_bit(results, folder, method, attack):
    cfg = small(results, folder, method, attack, "verify.keys=50")
    first = run.run(cfg)
    check(first)
    forced = run.run(OmegaConf.merge(cfg, {"force": True}))
    assert facts(forced.rows) == facts(first.rows)


def check(outcome: run.Outcome) -> None:
    assert outcome.status in ("done", "skipped", "cached"), outcome.message
    for row in outcome.rows:
        assert row.status == "ok" or (row.status == "skipped" and row.error)
        assert row.utility is None or 0 <= row.utility <= 100
        assert row.utility_name in ("psnr", None)
        assert row.ber is None or (0 <= row.ber <= 1 and row.log10_p <= 0)
    knobs = [row.knob for row in outcome.rows]
    assert knobs[:2] == ["host", "none"] or (outcome.rows[0].method == "none" and knobs[0] == "none")
    assert metrics.verdict({**vars(outcome.rows[0])}, "removal", 1.0) in ("control", "unmarked")


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", WHITE_BOX)
def test_every_pair_runs_or_says_why_not(results, folder, method, attack):
    check(run.run(small(results, folder, method, attack, "verify.keys=50")))


def test_owners_never_draw_from_the_attackers_pictures_or_the_test_set(monkeypatch, tmp_path, folder):
    drawn = []
    draw = RestorationTask._draw

    def record(self, split):
        drawn.append((self.role, split))
        return draw(self, split)

    monkeypatch.setattr(RestorationTask, "_draw", record)
    run.run(small(tmp_path, folder, "watermas", "finetune", "train.epochs=1", "verify.keys=0"))
    assert {s for role, s in drawn if role == "owner"} == {"owner"}
    assert {s for role, s in drawn if role == "attacker"} == {"attacker"}
    assert {role for role, s in drawn if s == "test"} == {"judge"}


def test_what_decides_a_host_is_in_its_identity(folder, results):
    def identity(*more: str) -> dict:
        return run.prepare(small(results, folder, "none", "none", *more)).host_identity

    same = identity()
    for change in ("task.sigma=10", "task.patch=32", "task.loss=l1", "task.degradation=rain", "task.metric=ssim"):
        assert identity(change) != same, change
    assert identity("data.flip=false") != same
    for other in ("task.tilt=5", "task.quality=50", "task.eval_batch=7", "data.crop=1", "data.image_size=16"):
        assert identity(other) == same, other  # rain and JPEG have no part in noise, nor have those in patches


@pytest.mark.slow
@pytest.mark.quick
def test_the_command_gives_a_table_in_decibels(tmp_path, folder):
    line = [*words(folder), "train.epochs=2", "method=uchida", "method.n_bits=64", "attack=prune"]
    done = command(*line, "attack.ratios=[0.5]", "verify.keys=0", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uchida on unet, small, seed 0")
    assert "psnr" in done.stdout.splitlines()[1]
    assert list((tmp_path / "runs" / "uchida" / "prune").glob("*.json"))


def test_the_configuration_says_what_it_knows():
    parameters = Restoration.__dataclass_fields__
    known = set(config("task=restoration").task) - {"_target_"}
    assert known == set(parameters)
