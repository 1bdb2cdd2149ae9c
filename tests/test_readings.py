"""What is measured of outputs, over many runs; what a network sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.postprocess import Changed
from bench import networks, readings, report, store
from bench.threat import Service
from tests.test_report import point, run

EXAMPLE = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)


def restored(attack: str, seed: int, psnr: float, *more: tuple[str, float | None, float]) -> dict:
    """A run file with a block `outputs`: host, victim and `more` suspects (knob, strength, PSNR)."""
    suspects = [("host", None, 100.0), ("none", None, psnr), *more]
    points = [point(knob, at, ber=0.5 if knob.startswith("clean/") else 0.0) for knob, at, _ in more]
    made = run("boxfree", attack, seed, points, model="unet", data="photos")
    made["outputs"] = [
        {"knob": knob, "strength": strength, "psnr_to_unmarked": value, "nc": 0.75, "sees": 17}
        for knob, strength, value in suspects
    ]
    return made


@pytest.fixture
def runs() -> list[dict]:
    return [
        restored("surrogate", 0, 40.0, ("same/l2", 14, 30.0), ("clean/same/l2", 14, 31.0)),
        restored("surrogate", 1, 42.0, ("same/l2", 14, 32.0), ("clean/same/l2", 14, 31.0)),
        restored("postprocess", 0, 40.0, ("noise", 2, 39.0)),
        run("uchida", "prune", 0, [point()]),
    ]


def test_host_and_victim_are_counted_once_a_seed(runs):
    found = readings.frame(runs, report.variants(runs))
    first = found[found["attack_label"] == "before attack"]
    assert [*zip(first["knob"], first["seed"], strict=True)] == [("host", 0), ("none", 0), ("host", 1), ("none", 1)]
    assert {*found["method_label"]} == {"boxfree"}
    assert len(found) == 9


def test_means_over_seeds(runs):
    made = readings.summary(readings.frame(runs, report.variants(runs)))
    names = [name for _, name in made.head]
    assert names == ["method", "attack", "suspect", "PSNR to unmarked", "NC", "sees"]
    cells = {row[2]: row[3:] for row in made.rows}
    # t(0.975, 1) = 12.706, of 40 and 42: 41 ± 12.706 * sqrt(2) / sqrt(2).
    assert cells["none"] == ["41.00 ± 12.71", "0.750", "17"]
    assert cells["same/l2 14"][0] == "31.00 ± 12.71"
    assert cells["noise 2"][0] == "39.00"
    assert made.caption == "1 to 2 seeds: what has no interval is 1 seed"


def test_the_report_shows_them(tmp_path, runs, capsys):
    for i, one in enumerate(runs):
        store.write_json(tmp_path / "runs" / f"{i}.json", one)
    assert report.main(["--results", str(tmp_path), "--formats", "svg"]) == 0
    assert "Pictures (1 to 2 seeds" in capsys.readouterr().out
    text = (tmp_path / "tables" / "pictures.md").read_text()
    assert "31.00 ± 12.71" in text
    assert (tmp_path / "tables" / "pictures.csv").read_text().count("\n") == 10
    assert '<section id="pictures">' in (tmp_path / "report.html").read_text()


def test_a_report_without_marks_in_outputs_has_no_such_table(tmp_path):
    store.write_json(tmp_path / "runs" / "0.json", run("uchida", "prune", 0, [point()]))
    assert report.main(["--results", str(tmp_path), "--formats", "svg"]) == 0
    assert not (tmp_path / "tables" / "pictures.csv").exists()
    assert "pictures" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "depth", "pixels"),
    [
        ("dncnn", 3, 7),  # 1 + 2 for each convolution
        ("dncnn", 8, 17),
        # Three convolutions back from the output: 7 pixels, 4 at half size; two there: 8, which are 16; two more: 20.
        ("unet", 1, 20),
        ("resnet_ir", 4, 81),
    ],
)
def test_receptive_fields(name, depth, pixels):
    net = networks.build(networks.Restorer(name, None, 4, depth, None), 0)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert networks.receptive_field(net, EXAMPLE) == pixels
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_receptive_field_is_what_a_change_of_the_input_reaches():
    """The same by hand: which outputs does one pixel change? As many as an output sees, on average over positions."""
    net = networks.build(networks.Restorer("unet", None, 4, 2, None), 0).double().eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight, 0.01, 0.02)
    start = torch.full((1, 3, 256, 4), 250.0, dtype=torch.float64)
    reached = []
    with torch.no_grad():
        for at in range(126, 130):
            changed = start.clone()
            changed[:, :, at] = 255.0
            reached.append(int(((net(changed) - net(start)).abs().amax((0, 1, 3)) > 0).sum()))
    assert sum(reached) / 4 == pytest.approx(networks.receptive_field(net, EXAMPLE), abs=4)


def test_nothing_is_said_of_what_a_service_or_changed_outputs_see():
    net = networks.build(networks.Restorer("dncnn", None, 4, 3, None), 0)
    trace = torch.ones(3, 32, 32)  # of the task's size, no other
    for suspect in (Service(net), Changed(net, lambda x: x - trace), Changed(Service(net), lambda x: x - trace)):
        assert networks.receptive_field(suspect, EXAMPLE) is None
