"""The report against hand-computed numbers, and everything that must never happen in a table."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cost, metrics, pairs, plots, report, store
from bench.types import ROW_FIELDS

N, ALPHA = 256, 1e-9
KEYS = {"random_keys": 1000, "false_positives": 0, "mean_ber": 0.5, "least_log10_p": -3.0}
HOST, VICTIM = 97.8, 97.4
ATTACKS = ("none", "prune", "quantize", "finetune", "overwrite", "forge")


def run(
    method="uchida", attack="none", seed=0, points=(), *, n=N, goal="removal", config=None, controls=KEYS, **fixed
) -> dict:
    """One run file: host and victim, then `points`, each a dict with knob, strength, ber and what else differs.

    Utility in percent. `config` updates the flattened configuration ("train.epochs": 2); `fixed` every row.
    """
    flat = {"train.epochs": 30, "method.n_bits": n, "attack.scope": "global", "attack.goal": goal, "attack.seed": 0}
    flat |= {"method._target_": method, "verify.alpha": ALPHA, "verify.max_damage": 5.0, **(config or {})}
    tree: dict = {"seed": seed}
    for key, value in flat.items():
        node, _, leaf = key.rpartition(".")
        (tree.setdefault(node, {}) if node else tree)[leaf] = value
    hashed = {key: value for key, value in flat.items() if key != "attack.seed"}
    digest = hashlib.sha256(json.dumps([method, attack, hashed, fixed.get("model"), fixed.get("data")]).encode())
    rows = []
    before = [{"knob": "host", "ber": 0.5, "utility": HOST}, {"knob": "none", "ber": 0.0, "utility": VICTIM}]
    for point in [*before, *points]:
        row = dict.fromkeys(ROW_FIELDS) | {"run_id": f"{digest.hexdigest()[:8]}-{seed}", "method": method}
        row |= {"attack": attack, "model": "mlp", "data": "digits", "seed": seed, "status": "ok", "device": "cpu"}
        row |= {"utility_name": "accuracy", "utility": VICTIM, "utility_victim": VICTIM, "utility_host": HOST}
        row |= {"seconds": 1.0, "config_hash": digest.hexdigest()[:12], "created_at": "2025-01-01T00:00:00"}
        row |= {**point, **fixed}
        if method == "none":
            row["ber"] = None
        if row["ber"] is not None:
            row |= {"n_bits": n, "log10_p": metrics.log10_p(row["ber"], n)}
            row["detected"] = metrics.is_detected(row["log10_p"], ALPHA)
        if row["claim_ber"] is not None:
            row["claim_log10_p"] = metrics.log10_p(row["claim_ber"], n)
            passes = metrics.is_detected(row["claim_log10_p"], ALPHA)
            row["claim_detected"] = passes if row["claim_detected"] is None else row["claim_detected"]
        rows.append(row)
    return {"config": tree, "env": {}, "controls": controls, "rows": rows}


def point(knob="ratio", strength=0.5, ber=0.0, damage=0.0, **more) -> dict:
    return {"knob": knob, "strength": strength, "ber": ber, "utility": VICTIM - damage, **more}


def curves(method: int, seed: int) -> dict[str, list[dict]]:
    """Points of every attack that look like results; the first method (0) is weaker than the second (1)."""
    wobble, weak = ((seed * 7 + method * 3) % 5 - 2) / 2, 1.5 - 0.6 * method

    def at(knob, strength, error, damage, **more):
        wrong = max(0, min(N // 2 + 6, round(N * weak * error + 2 * wobble * (error > 0))))
        return point(knob, strength, wrong / N, damage - 0.3 * wobble, **more)

    def forged(knob, strength, matching):
        passes = method == 0 if matching == N else None
        return point(knob, strength, claim_ber=1 - matching / N, claim_detected=passes)

    def overwritten(lr, factor, low):
        knob, damage = f"lambda factor, lr {lr:g}", (1 + lr * 50) * low / 2
        return at(knob, factor, 12 * lr * low, damage, claim_ber=0.3 / low**3)

    ratios, groups = (*(i / 10 for i in range(1, 10)), 0.95, 0.99), (("tensor", 0.3, 60), ("channel", 0.2, 30))
    bits, int8 = (8, 6, 4, 3, 2), at("bits/dynamic-int8", 8, 0.0, 0.1)
    return {
        "none": [],
        "prune": [at("ratio", r, 0.3 * r**6, 70 / (1 + math.exp(-40 * (r - 0.93)))) for r in ratios],
        "quantize": [*(at(f"bits/{g}", b, 4 * x / 2**b, 12 * y / 3.5**b) for g, x, y in groups for b in bits), int8],
        "finetune": [at("epoch", e, 0.004 * e, 0.04 * e - 0.3) for e in range(1, 11)],
        "overwrite": [overwritten(lr, f, math.log10(10 * f)) for lr in (0.001, 0.01) for f in (1, 10, 100, 1000)],
        "forge": [
            forged("flip", None, N),
            forged("learn", 50, N),
            forged("tries", 1000, 153),
            forged("tries", 1e5, 162),
        ],
    }


def plausible(seeds=(0, 1, 2), methods=("uchida", "neuralmark"), attacks=ATTACKS, **fixed) -> list[dict]:
    goals = {"overwrite": "overwrite", "forge": "forge"}
    return [
        run(method, attack, seed, curves(i, seed)[attack], goal=goals.get(attack, "removal"), **fixed)
        for i, method in enumerate(methods)
        for seed in seeds
        for attack in attacks
    ]


def save(folder: Path, runs: list[dict]) -> Path:
    """Write runs as the harness does; returns the results folder."""
    for i, r in enumerate(runs):
        head = r["rows"][0]
        store.write_json(store.run_path(folder, head["method"], head["attack"], f"{head['run_id']}-{i}"), r)
    return folder


def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (plots, cost):
        monkeypatch.setattr(module, "draw", lambda *args: [])


def cell(runs: list[dict], i: int = 0) -> str:
    return plots.outcomes(report.variants(runs))["text"][i]


def call(*args: object) -> int:
    return report.main([str(a) for a in args])


def test_seeds_are_pooled_by_bits_and_averaged_by_t():
    utilities, wrong = (90.0, 92.0, 94.0), (10, 20, 30)
    runs = [
        run("uchida", "prune", seed, [point(ber=w / N, utility=u, seconds=float(seed))])
        for seed, (u, w) in enumerate(zip(utilities, wrong, strict=True))
    ]
    agg = report.aggregate(report.variants(runs))
    p = agg[agg["knob"] == "ratio"].iloc[0]
    assert len(agg) == 3  # host, none, one strength
    assert (p["n"], p["n_bits"], p["detected"], p["verdict"]) == (3, N, 1.0, "survived")
    assert p["ber"] == pytest.approx(60 / 768)
    assert (p["ber_low"], p["ber_high"]) == pytest.approx((0.061176, 0.099274), abs=1e-6)
    assert (p["utility"], p["utility_half"]) == pytest.approx((92.0, 4.968275), abs=1e-6)
    assert (p["damage"], p["damage_half"]) == pytest.approx((VICTIM - 92.0, 4.968275), abs=1e-6)
    assert p["log10_p"] == pytest.approx(metrics.log10_p(20 / N, N))
    assert p["log10_p_worst"] == pytest.approx(metrics.log10_p(30 / N, N))
    assert p["seconds"] == 1.0


def test_one_seed_has_no_t_interval_and_says_so():
    df = report.variants([run("uchida", "prune", 0, [point(ber=10 / N)])])
    assert math.isnan(report.aggregate(df)["utility_half"].iloc[-1])
    table = report.summary(df, report.aggregate(df))
    assert table.caption == "1 seed: no interval"
    assert "±" not in str(table.rows)


def test_disagreeing_seeds_are_counted():
    runs = [run("uchida", "prune", seed, [point(ber=b)]) for seed, b in enumerate((0.5, 0.0, 0.5))]
    p = report.aggregate(report.variants(runs)).iloc[-1]
    assert p["verdict"] == "2/3 removed"
    assert p["detected"] == pytest.approx(1 / 3)


def test_variants_are_told_apart_and_never_averaged():
    other = {"attack.scope": "marked", "attack.criterion": "random"}
    runs = [run("uchida", "prune", s, [point(ber=0.0)], config={"attack.criterion": "size"}) for s in range(2)]
    runs += [run("uchida", "prune", s, [point(ber=0.5)], config=other) for s in range(2)]
    runs += [run("neuralmark", "prune", 0, [point(ber=0.25)], config={"attack.criterion": "size"})]
    agg = report.aggregate(report.variants(runs)).query("knob == 'ratio'")
    got = {(p.method_label, p.attack_label): (p.n, p.ber) for p in agg.itertuples()}
    assert got == {
        ("uchida", "prune (scope=global, criterion=size)"): (2, 0.0),
        ("uchida", "prune (scope=marked, criterion=random)"): (2, 0.5),
        ("neuralmark", "prune (scope=global, criterion=size)"): (1, 0.25),
    }


def test_differences_outside_the_attack_go_to_the_method():
    runs = [run("uchida", a, config={"train.epochs": e, "method.k": e}) for a, e in (("none", 2), ("prune", 9))]
    labels = {"uchida (train.epochs=2, k=2)", "uchida (train.epochs=9, k=9)"}
    assert set(report.variants(runs)["method_label"]) == labels
    other = {"label": "cifar100", "crop": 4}
    runs = [run("uchida", "finetune", config={"attack.transfer": to}) for to in (None, other)]
    assert set(report.variants(runs)["attack_label"]) == {"finetune (transfer=null)", "finetune (transfer=cifar100)"}


def test_what_differs_between_seeds_only_is_no_variant():
    configs = [{"attack.seed": s, "attack.note": f"of seed {s}"} for s in range(3)]
    df = report.variants([run("uchida", "prune", s, config=c, config_hash="same") for s, c in enumerate(configs)])
    assert set(df["method_label"] + df["attack_label"]) == {"uchidaprune"}


def test_equal_configurations_with_unequal_hashes_keep_apart():
    runs = [run("uchida", "prune", 0, [point(ber=b)], config_hash=h) for b, h in ((0.0, "aaaaaaaa"), (0.5, "bbbbbbbb"))]
    df = report.variants(runs)
    assert set(df["method_label"]) == {"uchida #aaaaaa", "uchida #bbbbbb"}
    assert set(report.aggregate(df).query("knob == 'ratio'")["ber"]) == {0.0, 0.5}


def test_of_two_files_of_one_seed_the_newest_counts():
    runs = [run("uchida", "prune", 0, [point(ber=b)], created_at=f"2025-01-0{d}") for b, d in ((0.5, 2), (0.25, 1))]
    assert [*report.aggregate(report.variants(runs))["ber"]][-1:] == [0.5]


def test_skipped_and_failed_rows_enter_no_mean_but_are_seen():
    bad = {"ber": 0.5, "utility": 0.0}
    runs = [run("uchida", "prune", s, [point(ber=0.0, damage=1.0)]) for s in range(2)]
    runs += [run("uchida", "prune", 2, [point(status="failed", error="out of memory", **bad)])]
    runs += [run("neuralmark", "prune", 0, [point("none", None, status="skipped", error="needs a layer", **bad)])]
    df = report.variants(runs)
    agg = report.aggregate(df)
    good = agg.query("knob == 'ratio' and status == 'ok'").iloc[0]
    assert (good["n"], good["ber"], good["utility"]) == (2, 0.0, pytest.approx(VICTIM - 1.0))
    rest = agg.query("status != 'ok'")
    said = dict(zip(rest["verdict"], rest["reason"], strict=True))
    assert said == {"failed": "out of memory", "skipped": "needs a layer"}
    assert rest[["ber", "utility", "detected"]].isna().all(axis=None)
    table = report.summary(df, agg)
    assert [row[-1] for row in table.rows] == ["n/a [1]", "failed [2]"]
    assert table.notes == ["skipped: needs a layer", "failed: out of memory"]
    text = report.markdown(report.strengths(df, agg, pairs.differences(df)), "")
    assert "neuralmark: skipped: needs a layer" in text
    assert "uchida: failed: out of memory" in text


def test_a_control_that_detects_invalidates_its_method_only(tmp_path, capsys):
    runs = [run(m, a, 0, [point(ber=0.0)]) for m in ("uchida", "neuralmark") for a in ("prune", "noise")]
    runs[0]["rows"][0] |= {"ber": 0.0, "detected": True}
    df = report.variants(runs)
    table = report.summary(df, report.aggregate(df))
    neuralmark, uchida = table.rows
    assert uchida[3:] == ["FALSE ALARM", "INVALID [1]", "INVALID [1]"]
    assert neuralmark[-2:] == ["survived (BER 0.00)"] * 2
    assert "verifies under the owner's key" in table.notes[0]
    assert call("--results", save(tmp_path, runs), "--formats", "png", "attack=prune") == 1
    assert "INVALID" in capsys.readouterr().err


def test_removal_is_the_least_damage_and_destruction_does_not_count():
    points = [
        point(strength=0.1, ber=0.02, damage=0.1),
        point(strength=0.5, ber=0.40, damage=4.0),
        point(strength=0.6, ber=0.45, damage=1.9),
        point(strength=0.9, ber=0.50, damage=40.0),
    ]
    assert cell([run("uchida", "prune", 0, points)]) == "removed at 1.9 pts"
    assert cell([run("uchida", "prune", 0, [points[0], points[3]])]) == "survived (BER 0.02)"
    assert cell([run("uchida", "prune", 0, points[3:])]) == "survived (model destroyed)"
    both = [run("uchida", "prune", s, [point(ber=0.4, damage=1.0 + s)]) for s in range(3)]
    assert cell(both) == "removed at 2.0 pts"
    both[0] = run("uchida", "prune", 0, [point(ber=0.0, damage=9.0)])
    assert cell(both) == "removed at 2.5 pts (2/3 seeds)"


def test_losing_the_mark_at_the_least_damage_outranks_ambiguity():
    gone = point(strength=1, ber=0.5, damage=2.0, claim_ber=0.5)
    both = point(strength=2, ber=0.0, damage=1.0, claim_ber=0.0)
    alone = point(strength=3, ber=0.5, damage=3.0, claim_ber=0.0)
    for points, text in (
        ([gone, both, alone], "removed at 2.0 pts"),
        ([both, alone], "overwritten at 3.0 pts"),
        ([both, point(claim_ber=0.5)], "ambiguous"),
        ([gone], "removed at 2.0 pts"),
        ([point(claim_ber=0.5)], "survived (BER 0.00)"),
    ):
        assert cell([run("uchida", "overwrite", 0, points, goal="overwrite")]) == text


def test_forging_and_other_outcomes():
    flip, tries = point("flip", None, claim_ber=0.0), point("tries", 100, claim_ber=0.4)
    assert cell([run("uchida", "forge", 0, [flip, tries], goal="forge")]) == "forged (flip)"
    refused = flip | {"claim_detected": False}
    assert cell([run("uchida", "forge", 0, [refused, tries], goal="forge")]) == "resisted"
    moved = point("epoch", 1, ber=0.5, utility_victim=None, utility_name="accuracy@cifar100")
    assert cell([run("uchida", "finetune", 0, [moved])]) == "lost (new task)"
    assert cell([run("none", "prune", 0, [point()])]) == "unmarked"
    never = run("uchida", "prune", 0, [point(ber=0.5)])
    never["rows"][1] |= {"ber": 0.5, "detected": False}
    assert cell([never]) == "NO MARK"


def test_markdown_and_latex_are_whole_and_escaped():
    ugly = "needs 100% of a_b | c & {d} \\ e\nf *g* <h>"
    runs = [run("my_method|x", "prune", s, [point(ber=0.5)]) for s in range(2)]
    runs += [run("uchida", "prune", 0, [point("none", None, status="skipped", error=ugly)])]
    df = report.variants(runs)
    agg = report.aggregate(df)
    tables = [report.summary(df, agg), *report.strengths(df, agg, pairs.differences(df))]
    text = report.markdown(tables, "legend")
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        rows = block.strip().split("\n")
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert re.fullmatch(r"\|( -+:? \|)+", rows[1])
    assert "my\\_method\\|x" in text
    assert "\\*g\\* \\<h>" in text
    tex = report.latex(tables, "legend")
    assert len(re.findall(r"(?<!\\)\{", tex)) == len(re.findall(r"(?<!\\)\}", tex))
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == tex.count(r"\toprule") == len(tables)
    assert r"100\% of a\_b $|$ c \& \{d\} \textbackslash{} e f" in tex
    for body in re.findall(r"\\midrule\n(.*?)\\bottomrule", tex, re.S):
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in body.strip().split("\n")}) == 1


def test_terminal_tables_fit_80_columns_and_carry_no_colour(tmp_path, capsys, monkeypatch):
    runs = plausible() + plausible(methods=("frequency",), model="vit_tiny", attacks=("none", "prune"))
    no_figures(monkeypatch)
    assert call("--results", save(tmp_path, runs)) == 0
    out = capsys.readouterr().out
    paths = (".csv", ".md", ".tex", ".html")  # are as they are
    tables = [line for line in out.splitlines() if not line.endswith(paths)]
    assert max(map(len, tables)) <= 80
    assert "\x1b" not in out
    for word in ("frequency", "vit_tiny", "before attack", "overwritten", "forged", "3 seeds"):
        assert word in out
    rows = (tmp_path / "tables" / "rows.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(r["rows"]) for r in runs)


def test_one_attack_and_one_method_make_one_figure(tmp_path):
    results = save(tmp_path, plausible(seeds=(0,), methods=("uchida",)))
    assert call("--results", results, "--formats", "png", "attack=prune") == 0
    (figure,) = (results / "figures").iterdir()
    assert figure.name == "prune.png"
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_every_attack_has_a_figure_and_several_models_have_their_own(tmp_path):
    df = report.variants(plausible(seeds=(0,), methods=("uchida",)))
    written = plots.draw(report.aggregate(df), df, tmp_path, ["svg"])
    assert {p.stem for p in written} == {*ATTACKS, "summary"} - {"none"}
    two = [run("uchida", "prune", 0, [point()], model=model) for model in ("resnet18", "vit_tiny")]
    df = report.variants(two)
    written = plots.draw(report.aggregate(df), df, tmp_path / "two", ["svg"])
    assert [p.name for p in written] == ["prune-resnet18-digits.svg", "prune-vit-tiny-digits.svg"]


def test_same_rows_give_the_same_bytes_in_another_process(tmp_path):
    results = save(tmp_path, plausible(seeds=(0, 1), methods=("uchida", "unheard_of"), attacks=("prune",)))
    args = ["--results", str(results), "--formats", "svg", "--out"]
    assert call(*args, tmp_path / "a") == 0
    assert python("-m", "bench.report", *args, str(tmp_path / "b"), PYTHONHASHSEED="7").returncode == 0
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*")]
    assert {f.suffix for f in files} == {".csv", ".md", ".tex", ".svg", ".html"}
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_style_belongs_to_a_name():
    assert plots.style("uchida") == plots.style("uchida")
    known = [plots.style(name) for name in plots.NAMED]
    assert len({look["color"] for look in known}) == len({look["marker"] for look in known}) == len(known)
    assert plots.style("uchida", 1) != plots.style("uchida")


def python(*args: str, **env: str) -> subprocess.CompletedProcess:
    root = Path(report.__file__).parents[1]
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=root, env=os.environ | env)


def test_no_runs_is_one_line_without_torch(tmp_path):
    code = f"import sys, bench.report as r; code = r.main(['--runs', {str(tmp_path)!r}]); print('torch' in sys.modules)"
    done = python("-c", f"{code}; sys.exit(code)")
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert re.fullmatch(r"error: no run files below .*\n", done.stderr)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["methd=uchida"], 2, "did you mean 'method'"),
        (["uchida"], 2, "method"),
        (["method=uchda"], 1, "did you mean 'uchida'"),
        (["method=uchida", "attack=forge,overwrite"], 1, "prune"),
        (["--formats", "gif"], 2, "svg"),
    ],
)
def test_mistakes_are_one_line_that_helps(tmp_path, capsys, args, code, said):
    results = save(tmp_path, [run("uchida", "prune", 0, [point()]), run("neuralmark", "forge", 0, [])])
    assert call("--results", results, *args) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    results = save(tmp_path, [run("uchida", "prune", 0, [point()])])
    (tmp_path / "file").write_text("")
    assert call("--results", results, "--out", tmp_path / "file") == 1
    assert re.fullmatch(r"error: cannot write to .*\n", capsys.readouterr().err)


def test_filters_take_lists_between_options(tmp_path, capsys, monkeypatch):
    no_figures(monkeypatch)
    results = save(tmp_path, plausible(seeds=(0,), methods=("uchida", "neuralmark", "frequency")))
    assert call("method=uchida,frequency", "--results", results, "attack=prune") == 0
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert words & {"uchida", "neuralmark", "frequency", "prune", "quantize"} == {"uchida", "frequency", "prune"}
