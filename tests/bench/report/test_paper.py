"""Tables and figures for papers: what LaTeX makes of them, and what fits."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import pytest

from bench.report import paper
from bench.report.content import assemble
from bench.report.figures import charts, curves, shown, static
from bench.report.tables import Cell, Table, markdown
from bench.report.words import knob, natural, span, told
from tests.fake_runs import HOST, plausible, point, run
from tests.helpers import ROOT

DOCUMENT = r"\documentclass[10pt,a4paper%s]{article}\usepackage[utf8]{inputenc}\usepackage{array,booktabs}"


def typeset(folder: Path, files: dict[str, str], width: str) -> str:
    """The log of a paper that holds all of them."""
    text = DOCUMENT % (",twocolumn" if width == "column" else "") + "\\begin{document}\n"
    # A page each: LaTeX holds no more than 52 floats that wait.
    text += "\n".join(files.values()).replace(r"\end{table}", r"\end{table}\clearpage") + "\n\\end{document}\n"
    (folder / "paper.tex").write_text(text, encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
    return (folder / "paper.log").read_text(encoding="latin-1")


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("width", ["text", "column"])
def test_every_table_fits_its_page(tmp_path, width):
    options = {"method.very_long_option_of_this_method": 0.25, "method.n_bits": 64}
    runs = plausible() + plausible(methods=("frequency",), model="vit_tiny", attacks=("none", "prune"))
    runs += [run("uchida", "prune", s, [point(ber=0.1)], config=options) for s in (0, 1)]
    ugly = "needs 100% of a_b | c & {d} \\ e $x^2$ <h> é ∞ and_one_word_that_nobody_would_break_in_a_column"
    runs += [run("watermas", "cut", 0, [point("none", None, status="skipped", error=ugly)])]
    many = [run(f"method_{i}", "prune", 0, [point(strength=s, ber=0.1) for s in range(60)]) for i in range(7)]
    files = {}
    for nth, some in enumerate((runs, many)):
        files |= {
            f"{nth}{name}": paper.latex(*part, f"{nth}{name}", width) for name, part in assemble(some).parts.items()
        }
    log = typeset(tmp_path, files, width)
    assert not re.findall(r"Overfull \\hbox .*", log)
    assert not re.findall(r"Float too large .*", log)
    assert "multiply defined" not in log


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="no pdffonts (Debian: poppler-utils)")
@pytest.mark.parametrize("width", ["column", "text"])
def test_figures_hold_letters_that_checkers_take(tmp_path, width):
    drawn = static.draw(assemble(plausible(seeds=(0, 1))), tmp_path, ["pdf", "svg"], width)
    for path in drawn:
        if path.suffix == ".pdf":
            fonts = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout
            assert "TrueType" in fonts
            assert "Type 3" not in fonts
        else:
            assert "<text" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("-0.4 ± 0.7", r"$-$0.4 $\pm$ 0.7"),
        ("victim - suspect", "victim $-$ suspect"),
        ("10^3 tries; 2^29", r"$10^{3}$ tries; $2^{29}$"),
        ("3x10^5", r"$3\times10^{5}$"),
        ("1e-9", "$10^{-9}$"),
        ("2.5e-05", r"$2.5\times10^{-5}$"),
        ("uchida #1e5a3b", r"uchida \#1e5a3b"),
        ("fine-tuned int-8", "fine-tuned int-8"),
        ("0.470 [.435, .505]*", "0.470 [.435,~.505]*"),
        ("a_b & 5%", r"a\_b \& 5\%"),
        ("method_of_many_words", r"method\_\allowbreak{}of\_\allowbreak{}many\_\allowbreak{}words"),
        ("ünïcode ∞", "ünïcode ?"),
    ],
)
def test_latex_has_real_minus_signs_and_powers(text, made):
    assert paper.tex(text) == made


def test_a_paper_has_attacks_in_rows_and_methods_in_columns():
    content = assemble(plausible())
    text = paper.latex(*content.parts["summary"], "summary")
    (head,) = re.findall(r"\\toprule\n(.*?)\\midrule", text, re.S)
    assert head.split() == ["&", "neuralmark", "&", "uchida", r"\\"]
    rows = re.findall(r"^    (\w[\w ]*) &", text, re.M)
    assert rows == ["fidelity", "victim BER", "host control", "finetune", "prune", "quantize", "overwrite", "forge"]
    assert r"\label{tab:summary}" in text
    assert re.search(r"\\begin\{tabular\}\{@\{\}l(l|>\{\\raggedright)", text)  # text is flush left


def test_a_table_that_is_too_wide_is_split_with_its_keys():
    table = Table("Wide", "", [("", "attack"), *(("", f"method{i}") for i in range(20))], 1)
    table.add("prune", *(f"removed at {i}.0 pts" for i in range(20)))
    table.note("nobody points here")
    text = paper.latex([table], "Legend.", "wide", "column")
    pieces = text.split(r"\begin{table}")[1:]
    assert len(pieces) > 3
    assert [re.search(r"label\{(.*?)\}", piece)[1] for piece in pieces[:2]] == ["tab:wide", "tab:wide-2"]
    assert all("prune &" in piece for piece in pieces)
    assert sorted(re.findall(r"at (\d+)\.0", text), key=int) == [*map(str, range(20))]
    assert (text.count("Legend."), text.count("nobody points here")) == (1, 1)
    assert r"Cells as in Table~\ref{tab:wide}" in pieces[1]


def test_an_interval_and_its_mark_are_no_link():
    table = Table("T", "", [("", "a"), ("", "BER"), ("", "outcome")], 1)
    table.add("prune", "0.336 [.270, .403](*)", Cell("removed at 0.1 pts"))
    text = markdown([table], "x](y)")
    assert r"[.270, .403]\(\*)" in text
    assert "](" not in text
    assert re.search(r"\| -+ \| -+: \| -+ \|", text)  # numbers flush right, text left


def test_every_committed_table_is_free_of_accidental_links():
    for path in (ROOT / "results").rglob("*.md"):
        assert r"](\*" not in path.read_text(encoding="utf-8"), path


def test_numbers_in_texts_sort_as_numbers():
    names = ["m (n_bits=64)", "m (n_bits=256)", "m (n_bits=1024)", "m (lr=1e-3)", "m (lr=0.5)", "m (x=-2)", "m (x=1)"]
    assert sorted(names, key=natural) == [*names[3:5], *names[:3], *names[5:]]
    assert natural("resnet18") < natural("resnet34") < natural("resnet101")


def test_the_victim_is_the_origin_of_every_panel_and_bands_stay_within_what_there_can_be():
    runs = plausible()
    for each in runs:
        for row in each["rows"]:
            if each["rows"][0]["attack"] == "overwrite" and row["utility"]:
                row["utility"] = 99.9 - 3.0 * row["seed"] if row["knob"] not in ("host", "none") else HOST
    figures = {chart.name: chart for chart in shown.attacks(assemble(runs))}
    for name in ("prune", "quantize", "finetune", "overwrite"):
        for panels in figures[name].panels:
            for panel in panels:
                assert panel.x.ends
                for s in (s for s in panel.series if not any(s.open)):  # not the attacker's own mark
                    start = min(s.x) if panel.x.ends[0] < panel.x.ends[1] else max(s.x)
                    assert s.x[[told.split("\n")[1].split(":")[0] for told in s.told].index("untouched")] == start
        lower = list(figures[name].panels[1])
        highs = [v for panel in lower for s in panel.series for v in s.band[1] if v == v]
        assert max(highs) <= 100.0
        assert all(v >= 0 for panel in lower for s in panel.series for v in s.band[0] if v == v)
    assert span("top1@cifar100") == (0.0, 100.0)
    above, below = figures["prune"].panels
    assert (above[0].y.title, below[0].y.title, below[0].x.title) == (
        "Bits wrong (BER)",
        "Accuracy (%)",
        "Share of weights pruned",
    )


def test_a_knob_says_its_direction_and_what_leaves_the_victim_alone():
    said = {"share": ["Share of the rank kept", 1.0, False, False]}
    place, victim, ticks = curves._placed(knob("share", said), [0.9, 0.5, 0.1])
    assert (place[0.9], victim) == (0.9, 1.0)
    assert ticks[-1] == (1.0, "1")
    assert told("share", said) == "share: share of the rank kept, less is stronger, 1 untouched"
    assert told("share, tuned", said).startswith("share, tuned: share of the rank kept, tuned, less")
    assert told("unheard of", {}) == ""
    points = [point("share", s, b) for s, b in ((0.1, 0.4), (0.5, 0.2), (0.9, 0.0))]
    content = assemble([run("uchida", "lowrank", 0, points) | {"knobs": said}])
    (table,) = content.parts["strengths"].tables[1:]
    assert [row[0] for row in table.texts] == ["0.9", "0.5", "0.1"]  # the stronger, the further down
    (chart,) = shown.attacks(content)
    assert chart.panels[0][0].x.ends[0] > chart.panels[0][0].x.ends[1]


def test_figures_of_a_column_have_no_title_wrap_their_panels_and_keep_letters_legible():
    figures = {chart.name: chart for chart in shown.attacks(assemble(plausible(seeds=(0, 1))))}
    form = static.FORMS["column"]
    with matplotlib.rc_context(static.STYLE | {"font.size": form.letters}):
        fig = static.chart(figures["quantize"], form)
        fig.draw_without_rendering()
        assert fig.get_figwidth() == 3.3
        assert fig._suptitle is None
        assert len(fig.axes) == 6
        edges = {round(ax.get_position().y0, 2) for ax in fig.axes}
        assert len(edges) == 4  # two lines of panels, of two rows each
        sizes = {text.get_fontsize() for text in fig.findobj(matplotlib.text.Text) if text.get_text()}
        assert min(sizes) >= 6.0
        width, height = fig.bbox.size
        titles = [axis.label for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)]
        for text in [*titles, *(text for ax in fig.axes for text in ax.texts), *fig.legends[0].get_texts()]:
            box = text.get_window_extent()
            assert -1 <= box.x0 <= box.x1 <= width + 1, text.get_text()
            assert -1 <= box.y0 <= box.y1 <= height + 1, text.get_text()


def test_a_heat_map_of_a_paper_has_methods_in_columns_and_so_many_as_fit():
    content = assemble([run(f"m{i}", a, 0, [point()]) for i in range(6) for a in ("prune", "noise")])
    figure = charts.tabled(shown.heat_map(content), 4)
    assert [[name for _, name in row[0].x.ticks] for row in figure.panels] == [["m0", "m1", "m2", "m3"], ["m4", "m5"]]
    assert [len(row[0].boxes) for row in figure.panels] == [8, 4]
    assert {box.x for box in figure.panels[1][0].boxes} == {0, 1}


def test_texts_of_bars_stand_where_no_line_runs():
    (chart,) = shown.costs(assemble(plausible()))
    with matplotlib.rc_context(static.STYLE):
        (ax,) = static.chart(chart).axes
        ax.figure.draw_without_rendering()
        right = ax.get_window_extent().x1
        words = [text for text in ax.texts if text.get_text()]
        assert len(words) >= 8
        assert all(text.get_window_extent().x0 >= right for text in words)
        ends = [line[:, 0] for lines in ax.collections for line in lines.get_segments() if len(line)]
        assert all(ax.get_xlim()[0] <= x <= ax.get_xlim()[1] for end in ends for x in end if x == x)
