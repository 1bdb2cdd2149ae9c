"""Cost of removal and the frontier against numbers worked out by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bench.report import cost
from bench.report.content import assemble
from bench.report.figures import static
from tests.fake_runs import call, plausible, point, run, save


def costs(runs: list[dict]):
    return assemble(runs).costs


def text(runs: list[dict]) -> str:
    return costs(runs)["text"].iloc[0]


def test_the_least_damage_of_each_seed_is_averaged_whatever_became_of_the_model():
    seeds = [[(0.2, 0.0), (8.0, 0.5), (6.0, 0.4)], [(0.1, 0.02), (7.0, 0.5)], [(9.0, 0.45), (40.0, 0.5)]]
    runs = [run("uchida", "prune", s, [point(strength=d, ber=b, damage=d) for d, b in p]) for s, p in enumerate(seeds)]
    c = costs(runs).iloc[0]
    # 6, 7 and 9: mean 22/3, standard deviation sqrt(7/3), t(2, 0.975) = 4.302653
    assert (c["cost"], c["half"]) == pytest.approx((22 / 3, 4.302653 * math.sqrt(7 / 3 / 3)), abs=1e-5)
    assert (c["k"], c["n"], c["text"], c["kind"]) == (3, 3, "7.3 ± 3.8 pts", "warn")  # more than max_damage
    assert assemble(runs).cells["text"].iloc[0] == "survived (BER 0.02)"


def test_what_never_went_has_no_number_and_some_seeds_are_counted():
    kept = [run("uchida", "prune", s, [point(damage=50.0)]) for s in range(3)]
    c = costs(kept).iloc[0]
    assert (c["text"], c["kind"], c["k"], c["n"]) == ("never", "good", 0, 3)
    assert math.isnan(c["cost"])
    kept[1] = run("uchida", "prune", 1, [point(ber=0.5, damage=2.0)])
    assert text(kept) == "2.0 pts (1/3 seeds)"
    assert text(kept[1:2]) == "2.0 pts"


def test_untried_unmarked_invalid_and_forged_have_no_cost():
    failed = point(status="failed", error="out of memory", ber=None, damage=0)
    assert text([run("uchida", "prune", 0, [point(), failed])]) == "failed"
    skipped = point("none", None, status="skipped", error="no layer", ber=None)
    assert text([run("uchida", "cut", 0, [skipped])]) == "n/a"
    moved = point("epoch", 1, ber=0.5, utility_victim=None, utility_name="accuracy@cifar100")
    assert text([run("uchida", "finetune", 0, [moved])]) == "lost (new task)"
    assert costs([run("none", "prune", 0, [point()])]).empty
    flip = point("flip", None, claim_ber=0.0)
    assert costs([run("uchida", "forge", 0, [flip], goal="forge")]).empty
    assert costs([run("uchida", "detect", 0, [point("shadows", 30, auc=1.0, auc_low=0.9)], goal="secrecy")]).empty
    bad = run("uchida", "prune", 0, [point(ber=0.5, damage=1.0)])
    bad["rows"][0] |= {"ber": 0.0, "detected": True}
    assert text([bad]) == "INVALID"
    assert math.isnan(costs([bad])["cost"].iloc[0])


def test_an_overwritten_mark_is_a_removed_one():
    points = [point(strength=1, claim_ber=0.0, damage=0.5), point(strength=2, ber=0.5, claim_ber=0.0, damage=1.5)]
    assert text([run("uchida", "overwrite", 0, points, goal="overwrite")]) == "1.5 pts"


def test_the_frontier_never_falls_and_no_point_lies_above_it():
    spots = cost.tradeoff(assemble(plausible()).points)
    assert set(spots["method"]) == {"uchida", "neuralmark"}
    for _, p in spots.groupby("method_label"):
        corners = cost.frontier(p)
        assert corners == sorted(corners)
        assert [ber for _, ber in corners] == sorted({ber for _, ber in corners})
        for q in p.itertuples():
            assert q.ber <= max(ber for damage, ber in corners if damage <= q.damage)
    by_hand = [point(strength=s, ber=b, damage=d) for s, b, d in ((1, 0.2, 1), (2, 0.1, 2), (3, 0.5, 3), (4, 0.3, -1))]
    corners = cost.frontier(cost.tradeoff(assemble([run("uchida", "prune", 0, by_hand)]).points))
    assert [x for at in corners for x in at] == pytest.approx([-1.0, 0.3, 3.0, 0.5])


def test_the_report_writes_and_prints_costs(tmp_path, capsys):
    results = save(tmp_path, plausible())
    assert call("--results", results, "--formats", "svg") == 0
    printed = capsys.readouterr().out
    assert printed.index("Summary (") < printed.index("Cost of removal (3 seeds)") < printed.index("before attack")
    tex = (results / "tables" / "cost.tex").read_text()
    assert r"\toprule" in tex
    assert r"$\pm$" in tex
    rows = (results / "tables" / "cost.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 4  # forging has no cost
    for name in ("threats", "cost", "tradeoff"):
        assert "<svg" in Path(results / "figures" / f"{name}.svg").read_text()


def test_figures_of_several_models_have_their_own(tmp_path):
    runs = [run(m, "prune", 0, [point()], model=model) for m in ("a", "b") for model in ("ViT/16", "resnet18")]
    written = static.draw(assemble(runs), tmp_path, ["pdf"])
    places = ("vit-16-digits", "resnet18-digits")
    names = ["summary", *(f"{name}-{place}" for name in ("prune", "threats", "cost", "tradeoff") for place in places)]
    assert sorted(path.stem for path in written) == sorted(names)
    assert all(re.match(rb"%PDF", path.read_bytes()) for path in written)


def test_a_single_pair_needs_no_comparison(tmp_path):
    written = static.draw(assemble([run("uchida", "prune", 0, [point()])]), tmp_path, ["svg"])
    assert [path.name for path in written] == ["prune.svg"]
