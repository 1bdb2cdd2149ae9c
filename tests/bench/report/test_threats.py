"""The cheapest removal by what the attacker has, against cells worked out by hand."""

from __future__ import annotations

from bench.report import threats
from bench.report.content import assemble
from tests.fake_runs import point, run


def made(attack: str, knows: list[str], data: str, *points: dict, seed: int = 0, **fixed) -> dict:
    config = {"attack.knows": knows, "attack.data": data}
    return run("uchida", attack, seed, points, config=config, **fixed)


def cells(runs: list[dict]) -> dict[str, str]:
    found = assemble(runs).threats
    return dict(zip(found["holds"], found["text"], strict=True))


def test_more_is_never_dearer_and_each_attack_counts_where_its_needs_are_covered():
    runs = [
        made("prune", ["weights"], "none", point(ber=0.5, damage=4.0)),
        made("shift", ["weights"], "attacker", point(ber=0.5, damage=2.0)),
        made("scrub", ["weights", "method"], "attacker", point(ber=0.5, damage=0.3, seconds=12.0)),
        made("intercept", ["weights", "method", "key"], "attacker", point(ber=0.5, damage=1.0)),
        made("distill", ["outputs"], "attacker", point(ber=0.5, damage=3.0)),
        made("extract", ["labels"], "attacker", point(ber=0.5, damage=8.0)),
    ]
    assert cells(runs) == {
        "weights": "4.0 pts (prune, 1.0 s)",
        "+ data": "2.0 pts (shift, 1.0 s)",
        "+ method": "0.3 pts (scrub, 12 s)",
        "+ layer": "0.3 pts (scrub, 12 s)",
        "+ key": "0.3 pts (scrub, 12 s)",
        "+ data, host": "2.0 pts (shift, 1.0 s)",
        "outputs": "3.0 pts (distill, 1.0 s)",
        "labels": "8.0 pts (extract, 1.0 s)",
    }
    first = next(iter(assemble(runs).parts))
    assert first == "threats"  # what a reader looks for


def test_what_was_tried_without_success_is_never_and_what_was_not_tried_is_a_dash():
    runs = [made("prune", ["weights"], "none", point(damage=50.0))]
    assert cells(runs) == dict.fromkeys(["weights", "+ data", "+ method", "+ layer", "+ key", "+ data, host"], "never")
    (table,) = assemble(runs).parts["threats"].tables
    assert [row[-1].text for row in table.rows] == ["never"] * 6 + ["–", "–"]


def test_the_attack_is_chosen_on_validation_and_told_on_test():
    """The least of many noisy test damages is biased: the old table told costs of -3.9 points."""

    def points(*each: tuple[float, float]) -> list[dict]:
        return [
            point(strength=i, ber=0.5, damage=test, utility_validation=90.0 - weighed)
            for i, (test, weighed) in enumerate(each, 1)
        ]

    runs = [
        made("prune", ["weights"], "none", *points((-3.0, 2.0), (1.5, 1.0))),
        made("noise", ["weights"], "none", *points((-1.0, 4.0))),
    ]
    for r in runs:
        r["rows"][1]["utility_validation"] = 90.0
    assert cells(runs)["weights"] == "1.5 pts (prune, 1.0 s)"
    content = assemble(runs)
    assert dict(zip(content.costs["attack"], content.costs["text"], strict=True)) == {
        "prune": "1.5 pts",
        "noise": "0.0 pts",
    }
    assert content.cells.set_index("attack")["text"]["prune"] == "removed at 1.5 pts"


def test_a_removal_in_all_seeds_comes_before_a_cheaper_one_in_some():
    runs = [made("prune", ["weights"], "none", point(ber=0.5, damage=3.0), seed=s) for s in range(3)]
    runs += [made("noise", ["weights"], "none", point(ber=0.5 * (s == 0), damage=0.5), seed=s) for s in range(3)]
    assert cells(runs)["weights"] == "3.0 ± 0.0 pts (prune, 1.0 s)"
    assert cells(runs[3:])["weights"] == "0.5 pts (noise 1/3 seeds, 1.0 s)"


def test_inverted_and_aligned_marks_are_not_removed():
    inverted = point(ber=1.0, damage=0.5)
    aligned = point(ber=0.5, damage=0.0, ber_aligned=0.0, log10_p_aligned=-76.0)
    runs = [made("shift", ["weights"], "none", inverted), made("permute", ["weights"], "none", aligned)]
    for r in runs:
        r["rows"][2] |= {"detected": True, "log10_p": -76.0 if r is runs[0] else 0.0}
    assert cells(runs)["weights"] == "never"
    said = assemble(runs).cells.set_index("attack")["text"]
    assert said["shift"] == "survived (BER 0.00, inverted)"
    assert said["permute"] == "survived (BER 0.00, aligned)"


def test_a_failed_control_leaves_no_number():
    bad = made("prune", ["weights"], "none", point(ber=0.5, damage=1.0))
    bad["rows"][0] |= {"ber": 0.0, "detected": True}
    assert set(cells([bad]).values()) == {"INVALID"}


def test_what_an_attacker_holds_covers_what_an_attack_needs():
    held = {needs: [h for h in threats.HOLDS if threats.covered(needs, h)] for needs in NEEDS}
    assert held == NEEDS


NEEDS = {
    "weights": ["weights", "+ data", "+ method", "+ layer", "+ key", "+ data, host"],
    "weights data": ["+ data", "+ method", "+ layer", "+ key", "+ data, host"],
    "weights host data": ["+ data, host"],
    "weights method layer": ["+ layer", "+ key"],
    "weights method key data": ["+ key"],
    "outputs data": ["+ data", "+ method", "+ layer", "+ key", "+ data, host", "outputs"],
    "labels data": ["+ data", "+ method", "+ layer", "+ key", "+ data, host", "outputs", "labels"],
}
