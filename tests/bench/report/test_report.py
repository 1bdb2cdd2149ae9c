"""The report against hand-computed numbers, and everything that must never happen in a table."""

from __future__ import annotations

import math
import re

import pytest

from bench import metrics
from bench.report import aggregate, labels, paper, style, tables
from bench.report.content import assemble, command
from bench.report.figures import shown, static
from tests.fake_runs import ATTACKS, VICTIM, N, call, cell, no_figures, plausible, point, run, save, summary
from tests.helpers import python


def test_seeds_are_pooled_by_bits_and_averaged_by_t():
    utilities, wrong = (90.0, 92.0, 94.0), (10, 20, 30)
    runs = [
        run("uchida", "prune", seed, [point(ber=w / N, utility=u, seconds=float(seed))])
        for seed, (u, w) in enumerate(zip(utilities, wrong, strict=True))
    ]
    agg = aggregate.aggregate(labels.variants(runs))
    p = agg[agg["knob"] == "ratio"].iloc[0]
    assert len(agg) == 3  # host, none, one strength
    assert (p["n"], p["n_bits"], p["detected"], p["verdict"]) == (3, N, 1.0, "survived")
    assert p["ber"] == pytest.approx(60 / 768)
    # The seeds differ more than bits would: chi square 10.847 over 2 degrees of freedom divides bits and trials.
    low, high = metrics.wilson(60 / 5.423729, 768 / 5.423729)
    assert (p["ber_low"], p["ber_high"]) == pytest.approx((low, high), abs=1e-6)
    assert (low, high) == pytest.approx((0.044252, 0.134284), abs=1e-6)
    assert (p["utility"], p["utility_half"]) == pytest.approx((92.0, 4.968275), abs=1e-6)
    assert (p["damage"], p["damage_half"]) == pytest.approx((VICTIM - 92.0, 4.968275), abs=1e-6)
    assert p["log10_p"] == pytest.approx(metrics.log10_p(20 / N, N))
    assert p["log10_p_worst"] == pytest.approx(metrics.log10_p(30 / N, N))
    assert p["seconds"] == 1.0


def test_one_seed_has_no_t_interval_and_says_so():
    runs = [run("uchida", "prune", 0, [point(ber=10 / N)])]
    df = labels.variants(runs)
    assert math.isnan(aggregate.aggregate(df)["utility_half"].iloc[-1])
    table = summary(runs)
    assert table.caption == "1 seed: no interval"
    assert "±" not in str(table.rows)


def test_disagreeing_seeds_are_counted():
    runs = [run("uchida", "prune", seed, [point(ber=b)]) for seed, b in enumerate((0.5, 0.0, 0.5))]
    p = aggregate.aggregate(labels.variants(runs)).iloc[-1]
    assert p["verdict"] == "2/3 removed"
    assert p["detected"] == pytest.approx(1 / 3)


def test_variants_are_told_apart_and_never_averaged():
    other = {"attack.scope": "marked", "attack.criterion": "random"}
    runs = [run("uchida", "prune", s, [point(ber=0.0)], config={"attack.criterion": "size"}) for s in range(2)]
    runs += [run("uchida", "prune", s, [point(ber=0.5)], config=other) for s in range(2)]
    runs += [run("neuralmark", "prune", 0, [point(ber=0.25)], config={"attack.criterion": "size"})]
    agg = aggregate.aggregate(labels.variants(runs)).query("knob == 'ratio'")
    got = {(p.method_label, p.attack_label): (p.n, p.ber) for p in agg.itertuples()}
    assert got == {
        ("uchida", "prune (scope=global)"): (2, 0.0),
        ("uchida", "prune (scope=marked)"): (2, 0.5),
        ("neuralmark", "prune (scope=global)"): (1, 0.25),
    }
    # What goes with it is said once, below the table.
    assert (
        "prune: criterion=size in prune (scope=global), random in prune (scope=marked)"
        in assemble(runs).parts["summary"].legend
    )


def test_differences_outside_the_attack_go_to_the_method():
    runs = [run("uchida", a, config={"train.epochs": e, "method.k": e}) for a, e in (("none", 2), ("prune", 9))]
    assert set(labels.variants(runs)["method_label"]) == {"uchida (k=2)", "uchida (k=9)"}
    runs = [run("uchida", a, config={"train.epochs": e}) for a, e in (("none", 2), ("prune", 9))]
    assert set(labels.variants(runs)["method_label"]) == {"uchida (train.epochs=2)", "uchida (train.epochs=9)"}
    other = {"label": "cifar100", "crop": 4}
    runs = [run("uchida", "finetune", config={"attack.transfer": to}) for to in (None, other)]
    assert set(labels.variants(runs)["attack_label"]) == {"finetune (transfer=null)", "finetune (transfer=cifar100)"}


def test_a_run_of_before_there_was_an_option_is_no_variant_of_one_that_leaves_it_out():
    runs = [run("uchida", "overwrite"), run("neuralmark", "overwrite", config={"attack.transfer": None})]
    assert set(labels.variants(runs)["attack_label"]) == {"overwrite"}
    runs.append(run("frequency", "overwrite", config={"attack.transfer": {"label": "cifar100"}}))
    found = labels.variants(runs).groupby("method")["attack_label"].first()
    assert found.to_dict() == {
        "uchida": "overwrite (transfer=null)",
        "neuralmark": "overwrite (transfer=null)",
        "frequency": "overwrite (transfer=cifar100)",
    }


def test_what_differs_between_seeds_only_is_no_variant():
    configs = [{"attack.seed": s, "attack.note": f"of seed {s}"} for s in range(3)]
    df = labels.variants([run("uchida", "prune", s, config=c, config_hash="same") for s, c in enumerate(configs)])
    assert set(df["method_label"] + df["attack_label"]) == {"uchidaprune"}


@pytest.mark.parametrize("limit", [{"task.max_damage": 5.0}, {"task.max_damage.psnr": 1.0}])
def test_files_from_before_tasks_had_a_limit_are_the_same_variant(limit):
    df = labels.variants([run("uchida", "prune"), run("uchida", "finetune", config=limit)])
    assert set(df["method_label"]) == {"uchida"}


def test_equal_configurations_with_unequal_hashes_keep_apart():
    runs = [run("uchida", "prune", 0, [point(ber=b)], config_hash=h) for b, h in ((0.0, "aaaaaaaa"), (0.5, "bbbbbbbb"))]
    df = labels.variants(runs)
    assert set(df["method_label"]) == {"uchida #aaaaaa", "uchida #bbbbbb"}
    assert set(aggregate.aggregate(df).query("knob == 'ratio'")["ber"]) == {0.0, 0.5}


def test_of_two_files_of_one_seed_the_newest_counts():
    runs = [run("uchida", "prune", 0, [point(ber=b)], created_at=f"2025-01-0{d}") for b, d in ((0.5, 2), (0.25, 1))]
    assert [*aggregate.aggregate(labels.variants(runs))["ber"]][-1:] == [0.5]


def test_skipped_and_failed_rows_enter_no_mean_but_are_seen():
    bad = {"ber": 0.5, "utility": 0.0}
    runs = [run("uchida", "prune", s, [point(ber=0.0, damage=1.0)]) for s in range(2)]
    runs += [run("uchida", "prune", 2, [point(status="failed", error="out of memory", **bad)])]
    runs += [run("neuralmark", "prune", 0, [point("none", None, status="skipped", error="needs a layer", **bad)])]
    df = labels.variants(runs)
    agg = aggregate.aggregate(df)
    good = agg.query("knob == 'ratio' and status == 'ok'").iloc[0]
    assert (good["n"], good["ber"], good["utility"]) == (2, 0.0, pytest.approx(VICTIM - 1.0))
    rest = agg.query("status != 'ok'")
    said = dict(zip(rest["verdict"], rest["reason"], strict=True))
    assert said == {"failed": "out of memory", "skipped": "needs a layer"}
    assert rest[["ber", "utility", "detected"]].isna().all(axis=None)
    table = summary(runs)
    assert [row[-1] for row in table.texts] == ["n/a [1]", "failed [2]"]
    assert table.notes == ["skipped: needs a layer", "failed: out of memory"]
    text = tables.markdown(*assemble(runs).parts["strengths"])
    assert "neuralmark: skipped: needs a layer" in text
    assert "uchida: failed: out of memory" in text


def test_a_control_that_detects_invalidates_its_method_only(tmp_path, capsys):
    runs = [run(m, a, 0, [point(ber=0.0)]) for m in ("uchida", "neuralmark") for a in ("prune", "noise")]
    runs[0]["rows"][0] |= {"ber": 0.0, "detected": True}
    table = summary(runs)
    neuralmark, uchida = table.texts
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
    wrecks = [point(strength=s, ber=0.1 * s, damage=40.0) for s in (0.1, 0.2)]
    assert cell([run("uchida", "prune", 0, wrecks)]) == "survived (BER 0.02, model destroyed)"
    assert cell([run("uchida", "prune", 0, [*wrecks, points[0]])]) == "survived (BER 0.02)"
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


def test_secrecy_is_said_with_its_auc():
    def looked(seed, auc, low):
        seen = point("shadows", 30, auc=auc, auc_low=low, auc_high=1.0, layer_named=1.0, layer_chance=0.1)
        return run("uchida", "detect", seed, [seen], goal="secrecy")

    assert cell([looked(0, 1.0, 0.89)]) == "shows (AUC 1.00)"
    assert cell([looked(0, 0.52, 0.4)]) == "hidden (AUC 0.52)"
    assert cell([looked(0, 1.0, 0.89), looked(1, 0.5, 0.4)]) == "shows (AUC 0.75, 1/2 seeds)"
    table = assemble([looked(0, 0.9, 0.8)]).parts["strengths"].tables[-1]
    assert "AUC" in [name for _, name in table.head]
    assert any("0.90 [0.80, 1.00]" in str(c) for row in table.rows for c in row)


def test_forging_and_other_outcomes():
    flip, tries = point("flip", None, claim_ber=0.0), point("tries", 100, claim_ber=0.4)
    assert cell([run("uchida", "forge", 0, [flip, tries], goal="forge")]) == "forged (flip)"
    refused = flip | {"claim_detected": False}
    assert cell([run("uchida", "forge", 0, [refused, tries], goal="forge")]) == "resisted (100 tries; 2^29)"
    asked = {"verify.claim": 2.0**-128}
    ground = [refused, tries, point("grind", 1e6, claim_ber=0.4)]
    assert cell([run("neuralmark", "forge", 0, ground, goal="forge", config=asked)]) == "resisted (10^6 tries; 2^128)"
    assert cell([run("uchida", "forge", 0, [refused], goal="forge", config=asked)]) == "resisted (2^128)"
    short = [
        run(
            "boxfree",
            "forge",
            0,
            [point("trained", 300, claim_ber=0.0, claim_detected=False)],
            n=64,
            goal="forge",
            config={"verify.claim": metrics.CLAIM},
        )
    ]
    assert cell(short) == "resisted (64 bits prove no claim)"
    assert assemble(short).cells["kind"][0] == "warn"
    # 64 classes that match one time in ten by chance do.
    tries = point("tries", 100, claim_ber=0.9, claim_detected=False, claim_chance=0.1)
    rare = [run("trigger", "forge", 0, [tries], n=64, goal="forge", config={"verify.claim": metrics.CLAIM})]
    assert cell(rare) == "resisted (100 tries; 2^82)"
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
    parts = assemble(runs).parts
    made = [*parts["summary"].tables, *parts["strengths"].tables]
    text = tables.markdown(made, "legend")
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        rows = block.strip().split("\n")
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert re.fullmatch(r"\|( -+:? \|)+", rows[1])
    assert "my\\_method\\|x" in text
    assert "\\*g\\* \\<h>" in text
    tex = paper.latex(made, "legend", "made")
    assert len(re.findall(r"(?<!\\)\{", tex)) == len(re.findall(r"(?<!\\)\}", tex))
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == tex.count(r"\toprule") >= len(made)
    assert r"100\% of a\_b $|$ c \& \{d\} \textbackslash{} e f" in tex
    for body in re.findall(r"\\midrule\n(.*?)\\bottomrule", tex, re.S):
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in body.strip().split("\n")}) == 1


def test_terminal_tables_fit_80_columns_and_carry_no_colour(tmp_path, capsys, monkeypatch):
    runs = plausible() + plausible(methods=("frequency",), model="vit_tiny", attacks=("none", "prune"))
    no_figures(monkeypatch)
    assert call("--results", save(tmp_path, runs)) == 0
    out = capsys.readouterr().out
    *tables, page, beside = out.splitlines()  # a path is as it is
    assert page.endswith("report.html")
    assert "tables in tables/" in beside
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
    written = static.draw(assemble(plausible(seeds=(0,), methods=("uchida",))), tmp_path, ["svg"])
    assert {p.stem for p in written} == {*ATTACKS, "summary", "threats", "cost", "tradeoff"} - {"none"}
    two = [run("uchida", "prune", 0, [point()], model=model) for model in ("resnet18", "vit_tiny")]
    written = static.draw(assemble(two), tmp_path / "two", ["svg"])
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


def test_figures_are_described_once_and_hold_what_they_show():
    content = assemble(plausible())
    charts = {chart.name: chart for chart in (*shown.attacks(content), *shown.costs(content), shown.heat_map(content))}
    assert {*charts} == {*ATTACKS[1:], "cost", "summary"}
    for chart in charts.values():
        for panel in (panel for row in chart.panels for panel in row if panel.y.ends):
            low, high = sorted(panel.y.ends)
            for s in panel.series:
                ends = s.y if s.joined == "bars" else [*s.y, *(v for band in s.band or () for v in band)]
                assert all(low <= v <= high for v in ends if v == v), chart.name
                assert len(s.told) == len(s.about) == len(s.x)
    (above,), (below,) = charts["prune"].panels
    one = content.points.query("attack_label == 'prune' and method == 'uchida'")
    (uchida,) = (s for s in above.series if s.label == "uchida")
    assert uchida.y[1:] == [*one["ber"]]
    assert uchida.band[0][1:] == [*one["ber_low"]]
    assert [level.text for level in below.levels][:2] == ["host", "victim - 5 pts"]
    assert charts["overwrite"].note == "open: attacker's own mark"
    # Of forged claims, those that pass are filled; evidence of 9 decades stands at 9, of 100 at twice as far as of 10.
    (forged,) = charts["forge"].panels[0]
    assert [s.open for s in forged.series if s.label == "uchida"] == [[False, False, True, True]]
    assert [shown.squash(x, 10) for x in (-9, 9, 10, 100, 1000)] == [-9, 9, 10, 20, 30]
    (bars,) = charts["cost"].panels[0]
    assert {text for s in bars.series for text in s.texts} == set(content.costs["text"])


def test_a_style_belongs_to_a_name():
    assert style.look("uchida") == style.look("uchida")
    known = [style.look(name) for name in style.NAMED]
    assert len({look.colour for look in known}) == len({look.marker for look in known}) == len(known)
    assert style.look("uchida", 1) != style.look("uchida")


def test_no_runs_is_one_line_without_torch(tmp_path):
    code = f"from bench.report.__main__ import main; code = main(['--runs', {str(tmp_path)!r}])"
    done = python("-c", f"import sys; {code}; print('torch' in sys.modules); sys.exit(code)")
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
    assert re.fullmatch(r"error: cannot write .*\n", capsys.readouterr().err)


def test_filters_take_lists_between_options(tmp_path, capsys, monkeypatch):
    no_figures(monkeypatch)
    results = save(tmp_path, plausible(seeds=(0,), methods=("uchida", "neuralmark", "frequency")))
    assert call("method=uchida,frequency", "--results", results, "attack=prune") == 0
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert words & {"uchida", "neuralmark", "frequency", "prune", "quantize"} == {"uchida", "frequency", "prune"}


@pytest.mark.parametrize(
    ("words", "seeds", "said"),
    [
        (["method=uchida", "attack=prune", "seed=0"], [0], "method=uchida attack=prune seed=0"),
        (["method=uchida", "seed=0,1"], [2, 0, 1, 1], "-m method=uchida seed=0,1,2"),
        (["--config-dir", "my conf", "method=mine"], [0], "--config-dir 'my conf' method=mine seed=0"),
        (["--config-dir=x", "method=mine"], [1, 0], "--config-dir=x -m method=mine seed=0,1"),
        (["results_dir=/tmp", "device=cuda:0", "threads=2", "force=true", "debug=true"], [0], "seed=0"),
        (["cache.root=/tmp", "logger=wandb", "+logger.x=1", "launcher=joblib", "hydra.verbose=true"], [0], "seed=0"),
        (["model@attack.student=unet", "~train.loss", "method.layer='a b'"], [3], None),
        ([], [0], "seed=0"),
    ],
)
def test_the_command_of_a_cell_is_what_its_runs_were_called_with(words, seeds, said):
    expected = said or "model@attack.student=unet '~train.loss' 'method.layer='\"'\"'a b'\"'\"'' seed=3"
    assert command(words, seeds) == f"python -m bench {expected}"


def test_a_run_that_recorded_no_command_says_so():
    assert command(None, [0, 1]) == "not recorded"


@pytest.mark.parametrize("module", ["tables", "words"])
def test_tables_and_words_need_no_library_that_draws(module):
    code = f"import sys, bench.report.{module}; print({{'matplotlib', 'plotly', 'torch', 'pandas'}} & {{*sys.modules}})"
    assert python("-c", code).stdout == "set()\n"
