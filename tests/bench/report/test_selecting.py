"""Which runs a report is of, which columns, what is on the x axis, and what configurations are called."""

from __future__ import annotations

import re

import pytest

from bench.errors import UserError
from bench.report import labels
from bench.report.content import assemble
from bench.report.figures.sweeps import sweeps
from bench.store.runs import listed, read_runs, selected
from tests.fake_runs import N, call, no_figures, point, run, save


def sized(model: str = "mlp", bits: tuple[int, ...] = (64, 256, 1024), **config) -> list[dict]:
    """One method with messages of several lengths under two attacks, two seeds each."""
    made = []
    for n in bits:
        for seed in (0, 1):
            options = {"method.n_bits": n, **config}
            points = [point(strength=s, ber=round(s * 1000 / n) / N, damage=s) for s in (0.3, 0.6)]
            made += [run("uchida", "prune", seed, points, n=n, config=options, model=model)]
            made += [run("uchida", "noise", seed, [point("sigma", 0.1)], n=n, config=options, model=model)]
    return made


def called(runs: list[dict], side: str = "method") -> set[tuple[str, str]]:
    return {*labels.variants(runs)[["model", f"{side}_label"]].itertuples(index=False, name=None)}


def test_one_configuration_has_one_label_whichever_the_model():
    runs = sized() + sized("vit", (64,))
    assert called(runs) == {("mlp", f"uchida (n_bits={n})") for n in (64, 256, 1024)} | {("vit", "uchida (n_bits=64)")}
    # One value for each model is another method all the same, and another schedule for each model is not.
    runs = sized(bits=(64,), **{"train.epochs": 10}) + sized("vit", (128,), **{"train.epochs": 20})
    assert called(runs) == {("mlp", "uchida (n_bits=64)"), ("vit", "uchida (n_bits=128)")}
    legend = assemble(runs).parts["summary"].legend
    assert "train.epochs=10 in uchida (n_bits=64), 20 in uchida (n_bits=128)" in legend
    runs = sized(bits=(64,), **{"train.epochs": 10}) + sized("vit", (64,), **{"train.epochs": 20})
    assert called(runs) == {("mlp", "uchida"), ("vit", "uchida")}
    assert "train.epochs=10 on mlp, digits, 20 on vit, digits" in assemble(runs).parts["summary"].legend


def test_equal_settings_are_one_column():
    runs = [
        run("uchida", "prune", config={"attack.scope": s}, model=m) for m, s in (("a", "all"), ("b", "all"), ("b", "x"))
    ]
    assert called(runs, "attack") == {("a", "prune (scope=all)"), ("b", "prune (scope=all)"), ("b", "prune (scope=x)")}


def test_the_shortest_telling_options_are_said_and_the_judges_last():
    def with_(**values):
        return run("uchida", "prune", config={key.replace("__", "."): value for key, value in values.items()})

    both = [with_(verify__keys=k, train__lr=k, method__scale=k) for k in (1, 2)]
    assert called(both) == {("mlp", "uchida (scale=1)"), ("mlp", "uchida (scale=2)")}
    last = [with_(verify__keys=k, train__lr=k) for k in (1, 2)]
    assert called(last) == {("mlp", "uchida (train.lr=1)"), ("mlp", "uchida (train.lr=2)")}
    crossed = [with_(train__a=a, train__b=b, train__c=a + b) for a in (0, 1) for b in (0, 2)]
    assert called(crossed) == {("mlp", f"uchida (train.c={c})") for c in range(4)}  # one that tells all, not two


@pytest.mark.parametrize(
    ("blocks", "count", "given", "found"),
    [
        ([{("a", "x")}], 2, [], []),
        ([{("a", "x"), ("b", "x")}], 2, [], [0]),
        ([{("a", "x"), ("b", "y")}], 2, [], [0]),
        ([{("a", "x"), ("b", "y")}], 2, [1], [1]),
        ([{("a", "x"), ("a", "y"), ("b", "x")}], 2, [], [0, 1]),
        ([{("a", "x")}, {("a", "y"), ("a", "z")}], 2, [], [1]),
        ([{(a, b, c) for a in "12" for b in "12" for c in "12"}], 3, [], [0, 1, 2]),
    ],
)
def test_telling_columns_are_as_few_as_do(blocks, count, given, found):
    assert labels.telling(blocks, count, given) == found


def test_numbers_sort_as_numbers_in_tables_and_figures():
    content = assemble(sized())
    order = ["uchida (n_bits=64)", "uchida (n_bits=256)", "uchida (n_bits=1024)"]
    assert [row[0] for row in content.parts["summary"].tables[0].texts] == order
    assert [*dict.fromkeys(group for group, _ in content.parts["strengths"].tables[0].head if group)] == order


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["method.n_bits=64"], 4),
        (["method.n_bits=64,1024.0", "seed=1"], 4),
        (["attack.scope=global"], 12),
        (["verify.alpha=1e-9"], 12),
    ],
)
def test_runs_are_selected_by_any_option(filters, count):
    assert len(selected(sized(), filters)) == count


def test_an_option_that_nobody_has_is_one_line_that_helps():
    with pytest.raises(UserError, match=r"method.n_bit=64: no run has it; did you mean 'method.n_bits'"):
        selected(sized(), ["method.n_bit=64"])
    with pytest.raises(UserError, match=r"method.n_bits=65 leaves nothing; .*1024, 256, 64"):
        selected(sized(), ["method.n_bits=65"])


def test_an_option_on_the_x_axis_joins_its_values():
    content = assemble(sized(), "method.n_bits")
    figures = {chart.name: chart for chart in sweeps(content)}
    assert {*figures} == {"before attack by method.n_bits", "prune by method.n_bits", "noise by method.n_bits"}
    above, below = figures["prune by method.n_bits"].panels
    assert [panel.x.title for panel in above] == ["n_bits (ratio 0.3)", "n_bits (ratio 0.6)"]
    assert [name for _, name in above[0].x.ticks] == ["64", "256", "1024"]
    (line,) = above[1].series
    assert (line.label, [round(y * N) for y in line.y]) == ("uchida", [9, 2, 1])
    assert line.x == sorted(line.x)
    assert above[0].x.ticks[1][0] * 2 == pytest.approx(above[0].x.ticks[0][0] + above[0].x.ticks[2][0])  # logarithmic
    assert len(below[0].series[0].band[0]) == 3


def test_the_page_has_the_figures_of_an_option(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    results = save(tmp_path, sized(bits=(64, 256)))
    assert call("--results", results, "--x", "method.n_bits") == 0
    page = (results / "report.html").read_text(encoding="utf-8")
    assert '<section id="sweep"><h2>By method.n_bits</h2><h3>before attack by method.n_bits</h3>' in page


def test_another_option_stays_in_the_label_beside_the_axis():
    runs = sized(bits=(64, 256), **{"method.scale": 1}) + sized(bits=(64, 256), **{"method.scale": 2})
    content = assemble(runs, "method.n_bits")
    (chart,) = (chart for chart in sweeps(content) if chart.name.startswith("noise"))
    assert [*chart.looks] == ["uchida (scale=1)", "uchida (scale=2)"]


def test_an_axis_that_nothing_varies_along_is_one_line(tmp_path, capsys):
    results = save(tmp_path, sized(bits=(64,)))
    assert call("--results", results, "--x", "method.n_bits", "--formats", "svg") == 1
    assert "no method was run with two values of it" in capsys.readouterr().err
    assert not (results / "tables").exists()
    assert call("--results", results, "--x", "method.nbits") == 2
    assert "did you mean 'method.n_bits'" in capsys.readouterr().err


def test_columns_are_chosen_by_name(tmp_path, capsys, monkeypatch):
    no_figures(monkeypatch)
    results = save(tmp_path, sized(bits=(64,)))
    assert call("--results", results, "--columns", "prune*,BER") == 0
    summary = (results / "tables" / "summary.md").read_text()
    assert re.search(r"\| method +\| prune +\|\n", summary)
    assert "| uchida BER" in (results / "tables" / "strengths.md").read_text()
    assert "uchida utility" not in (results / "tables" / "strengths.md").read_text()
    assert call("--results", results, "--columns", "prun") == 2
    assert "did you mean 'prune'" in capsys.readouterr().err


def test_several_folders_are_one_report(tmp_path, capsys, monkeypatch):
    no_figures(monkeypatch)
    one, two = (
        save(tmp_path / name, [run(method, "prune", 0, [point()])]) for name, method in (("a", "x1"), ("b", "x2"))
    )
    assert call("--runs", one / "runs", "--runs", two / "runs", "--out", tmp_path / "c") == 0
    said = capsys.readouterr().out
    assert {"x1", "x2"} <= set(re.findall(r"\w+", said))
    assert said.splitlines()[-2].endswith("report.html")
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<section class="provenance"', page)) == 2


def test_linked_folders_are_read_once_and_a_link_upwards_ends(tmp_path):
    real = save(tmp_path / "real", [run("uchida", "prune", 0, [point()])]) / "runs"
    mine = save(tmp_path / "mine", [run("neuralmark", "prune", 0, [point()])]) / "runs"
    (mine / "linked").symlink_to(real)
    (mine / "again").symlink_to(real)
    (real / "up").symlink_to(mine)
    (mine / "neuralmark" / "loop").symlink_to(mine / "neuralmark")
    assert {r["rows"][0]["method"] for r in read_runs(mine)} == {"uchida", "neuralmark"}
    assert len(read_runs(mine)) == 2
    assert len(listed(mine, links=False)[0]) == 1  # what is compacted
