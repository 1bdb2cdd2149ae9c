"""Published values beside measured ones: which row they meet, what differs, where they are shown."""

from __future__ import annotations

import csv

import pytest

from bench.report import __main__ as report
from bench.report import labels, published
from bench.report.content import assemble
from bench.report.words import missing
from tests.fake_runs import call, no_figures, plausible, point, run, save


def entry(quantity="detection", knob="ratio", strength=0.5, value=50.0, table="pruning", note="", **setting) -> dict:
    about = {"source": "Somebody 2020", "table": table, "quantity": quantity, "knob": knob, "strength": strength}
    setting = {key.replace("__", "."): value for key, value in setting.items()}
    return {**about, "published": value, "setting": setting, "note": note}


HOST = entry("accuracy", "host", None, 94.76, "fidelity")


def told(*entries: dict, method="uchida", attack="prune", seed=0, points=None, **more) -> dict:
    """A run file with a block `expected`."""
    made = run(method, attack, seed, [point(ber=0.25)] if points is None else points, **more)
    return {**made, "expected": [*entries]}


def shown(*runs: dict) -> list[dict[str, str]]:
    """The lines of the table, by column."""
    (made,) = assemble([*runs]).parts["published"].tables
    return [dict(zip((name for _, name in made.head), row, strict=True)) for row in made.texts]


def only(*runs: dict) -> dict:
    (line,) = published.frame([*runs], labels.variants([*runs])).to_dict("records")
    return line


def test_a_value_meets_the_row_of_its_knob_and_strength():
    points = [point(strength=0.5, ber=0.25), point(strength=0.9, ber=0.5), point("other", 0.5, ber=0.125)]
    line = only(told(entry(strength=0.9), points=points))
    assert (line["measured"], line["difference"], line["n"], line["strength"]) == (50, 0, 1, 0.9)
    assert only(told(entry(knob="other"), points=points))["measured"] == 87.5
    line = only(told(entry(strength="last"), points=points))
    assert (line["measured"], line["strength"]) == (50, 0.9)
    flip = point("flip", None, claim_ber=0.25)
    assert only(told(entry("claim", "flip", None, 100), points=[flip], goal="forge"))["difference"] == -25


@pytest.mark.parametrize(
    "at", [entry(strength=0.7), entry(knob="epoch"), entry("claim"), entry("claim", "none", None), entry(strength=None)]
)
def test_a_value_without_its_point_is_shown_without_a_measured_one(at):
    line = only(told(at))
    assert (line["n"], missing(line["measured"]), missing(line["difference"])) == (0, True, True)
    (row,) = shown(told(at))
    assert (row["published"], row["ours"], row["difference"]) == ("50", "–", "–")


def test_skipped_and_failed_rows_are_no_points():
    skipped = point(status="skipped", error="no", ber=None)
    assert only(told(entry(), points=[skipped]))["n"] == 0


def test_seeds_are_pooled_with_the_intervals_of_the_protocol():
    runs = [told(entry(), HOST, seed=s, points=[point(ber=b)]) for s, b in enumerate((0.25, 0.5, 0.75))]
    bits, host = shown(*runs)
    assert bits["ours"].startswith("50.0 [")
    assert host["ours"] == "97.80 ± 0.00"
    line = published.frame(runs, labels.variants(runs)).iloc[0]
    assert (line["n"], line["low"] < 50 < line["high"]) == (3, True)
    assert line["high"] - line["low"] > 20  # seeds differ by more than bits would
    (alone, unmarked) = shown(runs[0])
    assert (alone["ours"], unmarked["ours"]) == ("75.0", "97.80")


def test_host_and_victim_are_counted_once_a_seed_and_the_host_once():
    victim = entry("accuracy", "none", None, 94.5, "fidelity")
    runs = [told(HOST, victim, method=m, attack=a) for m in ("uchida", "neuralmark") for a in ("prune", "finetune")]
    lines = shown(*runs)
    assert [(line["method"], line["published"], line["ours"]) for line in lines] == [
        ("–", "94.76", "97.80"),
        ("neuralmark", "94.5", "97.40"),
        ("uchida", "94.5", "97.40"),
    ]
    assert (lines[0]["what"], lines[1]["what"]) == ("fidelity: accuracy, no mark", "fidelity: accuracy, victim")
    found = published.frame(runs, labels.variants(runs))
    assert set(found["n"]) == {1}
    assert set(found["attack_label"]) == {"before attack"}


def test_what_differs_is_said_and_a_small_run_is_none_of_the_papers():
    at = entry(model="resnet18_cifar", data="cifar10", train__epochs=200, attack__scope="global", attack__transfer=None)
    small = only(told(at))
    assert small["setting"] == "model mlp (resnet18_cifar), data digits (cifar10), train.epochs 30 (200)"
    (made,) = assemble([told(at)]).parts["published"].tables
    assert made.texts[0][-1] == "ours [1]"
    assert made.notes == [f"Somebody 2020, pruning: ours {small['setting']}"]
    same = told(at, model="resnet18_cifar", data="cifar10", config={"train.epochs": 200})
    assert only(same)["setting"] == ""
    (made,) = assemble([same]).parts["published"].tables
    assert (made.texts[0][-1], made.notes) == ("same [1]", ["Somebody 2020, pruning"])


def test_accuracies_are_subtracted_on_the_papers_data_alone():
    elsewhere, here = entry("accuracy", "host", None, 90.0, data="cifar10"), entry("accuracy", "host", None, 90.0)
    assert missing(only(told(elsewhere))["difference"])
    assert only(told(here))["difference"] == pytest.approx(7.8)
    assert only(told(elsewhere, data="cifar10"))["difference"] == pytest.approx(7.8)
    bits = entry(data="cifar10")
    assert only(told(bits))["difference"] == 25
    picture = told(here)
    for row in picture["rows"]:
        row["utility_name"] = "psnr"
    assert only(picture)["n"] == 0  # dB are no percent


def test_of_several_data_sets_the_nearest_setting_counts():
    one = entry(value=85.9, table="100 to 10", data="cifar100", attack__transfer="cifar10")
    other = entry(value=70.3, table="10 to 100", data="cifar10", attack__transfer="cifar100")

    def values(data: str, transfer: str | None) -> list[float]:
        node = {"label": transfer} if transfer else None
        made = told(one, other, data=data, config={"attack.transfer": node})
        return published.frame([made], labels.variants([made]))["published"].tolist()

    assert values("cifar10", "cifar100") == [70.3]
    assert values("cifar100", "cifar10") == [85.9]
    assert values("cifar10", None) == [70.3]  # other images of the same
    assert values("digits", None) == [85.9, 70.3]  # as far from both
    local = {"label": None, "path": "/data/cifar10"}
    made = told(one, other, data="cifar100", config={"attack.transfer": local})
    assert only(made)["setting"] == ""


def test_variants_of_a_method_and_an_attack_stay_apart():
    runs = [told(entry(), config={"method.rounds": r}) for r in (1, 2)]
    assert [line["method"] for line in shown(*runs)] == ["uchida (rounds=1)", "uchida (rounds=2)"]
    runs = [told(entry(), config={"attack.scope": s}) for s in ("layer", "global")]
    assert {line["what"] for line in shown(*runs)} == {
        f"pruning (prune (scope={s})): owner's bits, ratio 0.5" for s in ("layer", "global")
    }


def test_a_method_whose_control_detects_is_invalid_here_too():
    made = told(entry())
    made["rows"][0] |= {"detected": True, "ber": 0.0}
    assert shown(made)[0]["method"] == "uchida (INVALID)"


def test_the_report_shows_them_in_every_format(tmp_path, capsys, monkeypatch):
    no_figures(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    at = entry(strength=0.9, note="read as <b>", data="cifar10", train__epochs=200)
    runs = plausible(seeds=(0, 1), attacks=("prune",))
    save(tmp_path, [{**r, "expected": [at, HOST]} for r in runs])
    assert call("--results", tmp_path) == 0
    out = capsys.readouterr().out
    assert "Published beside measured (2 seeds)" in out
    table = out[out.index("Published beside") : out.index("no such point was measured")]
    assert max(map(len, table.splitlines()[:12])) <= 80
    tables = tmp_path / "tables"
    assert "data digits (cifar10), train.epochs 30 (200); read as \\<b>" in (tables / "published.md").read_text()
    assert r"\toprule" in (tables / "published.tex").read_text()
    lines = [*csv.DictReader((tables / "published.csv").open())]
    assert [line["method_label"] for line in lines] == ["neuralmark", "uchida"] * 2
    assert {line["setting"] for line in lines[:2]} == {"data digits (cifar10), train.epochs 30 (200)"}
    page = (tmp_path / "report.html").read_text()
    assert '<section id="published">' in page
    assert "read as &lt;b&gt;" in page


def test_a_report_of_runs_without_any_has_no_such_table(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    save(tmp_path, plausible(seeds=(0,), attacks=("prune",)))
    assert report.main(["--results", str(tmp_path)]) == 0
    assert not [*(tmp_path / "tables").glob("published*")]
    assert "published" not in (tmp_path / "report.html").read_text().split("<main>")[1]
    assert "published" not in assemble(plausible(seeds=(0,), attacks=("prune",))).frames
