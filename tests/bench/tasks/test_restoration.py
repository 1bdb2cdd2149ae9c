"""Image restoration: splits, tiles and pairs, metrics, losses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench.data import pictures
from bench.tasks.restoration import UNIT, Restoration
from tests.helpers import CPU, SIZES, config, restoration_task


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


def test_tiles_cover_a_picture_once(picture_folder, results):
    one = restoration_task(picture_folder, results, "task.sigma=0")
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
def test_measured_pairs_never_change_and_training_pairs_follow_their_seed(picture_folder, results, kind):
    one = restoration_task(picture_folder, results, f"task.degradation={kind}")

    def pairs(t, split, size, seed=None):
        return [torch.cat(x) for x in zip(*t.batches(split, size, seed), strict=True)]

    measured = pairs(one, "test", 64)
    again = pairs(restoration_task(picture_folder, results, f"task.degradation={kind}", "task.eval_batch=3"), "test", 5)
    assert all(map(torch.equal, measured, again))
    assert not torch.equal(*measured)
    first, same, other = (pairs(one.view("owner"), "owner", 16, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, same))
    assert not torch.equal(first[1], other[1])
    assert len(first[0]) == one.size("owner") // 16 * 16
    assert all(x.dtype == torch.uint8 and x.shape[1:] == (3, 16, 16) for x in first)


# Metrics, losses


def identity_model(value=lambda x: x.float()) -> torch.nn.Module:
    class Net(torch.nn.Module):
        def forward(self, images):
            return value(images)

    return Net()


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_a_host_is_one_that_leaves_fewer_errors_than_there_were(picture_folder, results, metric):
    one = restoration_task(picture_folder, results, f"task.metric={metric}")
    n, same, black = one.size("test"), identity_model(), identity_model(torch.zeros_like)
    assert one.confidence(same, same, 0.0, 0.0) == pytest.approx(
        (0, 0), abs=1e-9
    )  # no better than doing nothing, on no tile
    log10_p, half = one.confidence(black, same, 0.0, 0.0)
    assert log10_p > -3
    assert 0 < half < 100
    blurred = identity_model(lambda x: torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1, count_include_pad=False))
    log10_p, half = one.confidence(blurred, blurred, 0.0, 0.0)
    assert -n * math.log10(2) <= log10_p < -3
    assert half == 0


def test_psnr_is_that_of_all_tiles_and_ssim_their_mean(picture_folder, results, opened):
    degraded, clean = (torch.cat(x).double() for x in zip(*opened.batches("test", 64), strict=True))
    expected = 10 * math.log10(255**2 / (degraded - clean).square().mean().item())
    assert opened.utility(identity_model()) == pytest.approx(expected, abs=1e-4)
    assert 18 < expected < 23  # 20 log10(255 / 25) = 20.2; clipping lets it rise
    black = opened.utility(identity_model(torch.zeros_like))
    assert opened.utility(identity_model(lambda x: x.float() * math.nan)) == black
    assert opened.utility(identity_model(lambda x: x.float() + math.inf)) == black
    assert opened.utility(identity_model(lambda x: x.float() + 0.4)) == pytest.approx(expected, abs=1e-4)
    structure = restoration_task(picture_folder, results, "task.metric=ssim")
    assert 0 < structure.utility(identity_model()) < 0.9
    assert structure.utility_name == "ssim"
    untouched = [
        restoration_task(picture_folder, results, "task.sigma=0", f"task.metric={m}") for m in ("psnr", "ssim")
    ]
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


def test_the_configuration_says_what_it_knows():
    parameters = Restoration.__dataclass_fields__
    known = set(config("task=restoration").task) - {"_target_"}
    assert known == set(parameters)
