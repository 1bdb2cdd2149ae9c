"""report.html: its numbers are the rows', nothing in it is fetched or executed, and a browser can use it."""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import metrics
from bench.report import words
from bench.report.content import assemble
from bench.report.page import page as html
from bench.store import claims as verdicts
from tests.fake_runs import HOST, VICTIM, N, call, no_figures, plausible, point, run, save
from tests.helpers import python

EVIL = "</script><img src=x onerror=alert(1)> & \"q\" 'q' ${x} %s"


class Page(HTMLParser):
    """The page's tables, ids, links, and what it would load."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.hrefs: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.scripts: list[tuple[dict, str]] = []
        self.orders: dict[str, str] = {}
        self.cell = self.script = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.add(tag)
        self.ids += [known["id"]] if "id" in known else []
        self.hrefs += [known["href"]] if tag == "a" else []
        self.loads += [v for k, v in attributes if k in ("src", "srcset", "data", "poster")]
        self.loads += [known["href"]] if tag in ("link", "base") else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell, self.order = True, known.get("data-order")
        elif tag == "script":
            self.scripts.append((known, ""))
            self.script = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False
            if self.order is not None:
                self.orders[self.tables[-1][-1][-1]] = self.order
        self.script = self.script and tag != "script"

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data
        elif self.script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

    def table(self, *head: str) -> list[list[str]]:
        """The body of the table whose head begins so."""
        (found,) = [t for t in self.tables if tuple(t[0][: len(head)]) == head]
        return found[1:]

    @property
    def figures(self) -> list[dict]:
        return [json.loads(text) for known, text in self.scripts if known.get("type") == "application/json"]


def build(folder: Path, runs: list[dict], monkeypatch, *args: str) -> tuple[str, Page]:
    no_figures(monkeypatch)
    code = call("--results", save(folder, runs), "--formats", "svg", *args)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert code == int("FALSE ALARM" in text)
    return text, Page(text)


def mixed() -> list[dict]:
    """Two models, three seeds, every kind of outcome: a failed control, a skipped and a failed run."""
    runs = plausible() + plausible(methods=("frequency",), model="vit_tiny", attacks=("none", "prune"))
    for r in runs:
        r["command"] = [f"{key}={r['rows'][0][key]}" for key in ("method", "attack", "model", "seed")]
    false_alarm = run("watermas", "prune", 0, [point(ber=0.5)])
    false_alarm["rows"][0] |= {"ber": 0.0, "detected": True}
    false_alarm["command"] = None  # as in files from before it was recorded
    failed = point("none", None, status="failed", error="out of memory", ber=None)
    return [*runs, false_alarm, run("watermas", "quantize", 0, [failed]) | {"command": None}]


@pytest.fixture
def whole(tmp_path, monkeypatch) -> tuple[list[dict], str, Page]:
    runs = mixed()
    return runs, *build(tmp_path, runs, monkeypatch)


def test_tables_say_what_the_terminal_says(whole):
    runs, _, page = whole
    content = assemble(runs)
    (first,), (prices,) = (content.parts[name].tables for name in ("summary", "cost"))
    assert page.table("method", "model", "data", "fidelity") == first.texts
    assert page.table("method", "model", "data", prices.head[3][1]) == prices.texts
    assert ["watermas", "mlp", "digits"] in [row[:3] for row in first.texts]
    assert "INVALID" in str(prices.texts)
    every = content.points
    shown = page.table("attack", "method")
    assert len(shown) == len(every)
    for row, p in zip(shown, every.itertuples(), strict=True):
        utility = words.interval(p.utility, p.utility_half, p.utility_name)
        said = [p.attack_label, p.method_label, p.model, p.data, words.number(p.strength), words.ber(p), utility]
        assert [*row[:4], row[5], row[7], row[10]] == said
        judged = p.verdict + " (INVALID)" * (p.method == "watermas" and p.attack == "prune")
        assert (row[12], row[13]) == (judged, p.reason)


def test_numbers_sort_by_their_value(whole):
    _, _, page = whole
    assert page.orders["0.000 [.000, .005]"] == "0"
    assert float(page.orders["-231.2"] if "-231.2" in page.orders else page.orders["-77.1"]) == pytest.approx(-77.0637)
    assert page.orders["–"] == ""


def test_figures_show_the_same_points_bands_and_lines(whole):
    runs, text, page = whole
    one = assemble(runs).points.query("attack_label == 'prune' and model == 'vit_tiny'")
    title = text.index(f"<h3>{escape('prune, vit_tiny, digits')}</h3>")
    figure = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text[title:], re.S)[1])
    lines = [t for t in figure["data"] if t["mode"] == "lines+markers" and t.get("customdata")]
    assert lines[0]["y"] == [0.0, *one["ber"]]
    assert lines[1]["y"] == pytest.approx([VICTIM, *one["utility"]])
    assert lines[0]["x"] == [0.0, *one["strength"]]
    band = next(t for t in figure["data"] if t.get("fill") == "toself")
    assert band["y"][1 : 1 + len(one)] == [*one["ber_high"]]
    dots = next(t for t in figure["data"] if t["mode"] == "markers")
    assert len(dots["y"]) == 3 * (len(one) + 1)
    heights = sorted({round(shape["y0"], 6) for shape in figure["layout"]["shapes"]})
    assert heights == [1 - metrics.matches_needed(N, 1e-9) / N, 0.5, VICTIM - 5.0, HOST]
    assert len(page.figures) == len(re.findall('<div class="figure"', text))
    assert {t["line"]["color"] for t in lines} == {"#009E73"}


def test_every_cell_leads_to_runs_a_configuration_and_a_command(whole):
    runs, text, page = whole
    inside = [href.removeprefix("#") for href in page.hrefs]
    assert set(inside) <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    cells = assemble(runs).cells
    assert len({name for name in inside if name.startswith("cell-")}) >= len(cells)
    assert {f"run-{r['rows'][0]['run_id']}" for r in runs} <= set(page.ids)
    for name in re.findall(r'id="(cell-[^"]+)"', text):
        section = text[text.index(f'id="{name}"') :].split("</section>")[0]
        line = re.search(r'<pre class="command">(.*?)</pre>', section)[1]
        known = r"python -m bench -m method=\w+ attack=\w+ model=\w+ seed=0,1,2"
        assert re.fullmatch(r"not recorded" if "watermas" in name else known, line)
        assert "&quot;alpha&quot;: 1e-09" in section
    for custom in (c for f in page.figures for t in f["data"] for c in t.get("customdata", [])):
        for anchor in [c[0] for c in custom] if isinstance(custom[0], list) else [custom[0]]:
            assert anchor in page.ids or anchor == ""


def test_what_rows_say_is_text(tmp_path, monkeypatch):
    skipped = point("none", None, status="skipped", error=EVIL, ber=None)
    runs = [run("<b>x</b>", "prune", s, [point(ber=0.5)], config={"method.note": EVIL}) for s in range(2)]
    runs += [run("uchida", "<i>", 0, [skipped]), run("uchida", "prune", 0, [point(knob="<u>&")])]
    for r in runs:
        for row in r["rows"]:
            row["commit"] = EVIL
    claim = dict.fromkeys(verdicts.COLUMNS, EVIL) | {"run_ids": [EVIL], "seeds": [EVIL]}
    tmp_path.joinpath("claims.json").write_text(json.dumps([claim]))
    text, page = build(tmp_path, runs, monkeypatch)
    assert not page.tags & {"img", "b", "i", "u"}
    assert not any("<" in code for known, code in page.scripts if known.get("type") == "application/json")
    assert escape(EVIL) in text
    assert EVIL in [cell for table in page.tables for row in table for cell in row]
    shown = json.dumps([[{**trace, "legendgroup": ""} for trace in figure["data"]] for figure in page.figures])
    assert "&lt;b&gt;x" in shown  # plotly reads tags in its texts
    assert "<b>x" not in shown


def test_nothing_is_fetched(whole):
    _, text, page = whole
    assert all(source.startswith("data:") for source in page.loads)
    assert all(href.startswith("#") for href in page.hrefs)
    own = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", text, count=0, flags=re.S)
    assert "http" not in own.replace("http://www.w3.org/2000/svg", "")
    css = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert not re.findall(r"@import|url\((?!['\"]?data:)", "".join(css))
    assert 'const TABLES = "data:text/javascript' in text


def test_the_same_rows_give_the_same_page_in_another_process(tmp_path, monkeypatch):
    runs = plausible(seeds=(0, 1), attacks=("prune", "forge"))
    build(tmp_path, runs, monkeypatch, "--out", str(tmp_path))
    done = python("-m", "bench.report", "--results", str(tmp_path), "--formats", "png", "--out", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "b" / "report.html").read_bytes()


def test_claims_are_shown_with_their_runs_or_said_to_be_missing(tmp_path, monkeypatch):
    runs = [run("uchida", "prune", 0, [point()])]
    text, page = build(tmp_path, runs, monkeypatch)
    assert "python -m bench.claims" in text
    known = runs[0]["rows"][0]["run_id"]
    claims = [
        dict.fromkeys(verdicts.COLUMNS, "x") | {"verdict": v, "run_ids": [known, "gone"], "seeds": [0, 1]}
        for v in ("held", "failed", "inconclusive", "held")
    ]
    tmp_path.joinpath("claims.json").write_text(json.dumps(claims))
    text, page = build(tmp_path, runs, monkeypatch)
    rows = page.table("name", "paper", "claim")
    assert [row[4] for row in rows] == ["held", "failed", "inconclusive", "held"]
    assert (rows[0][9], rows[0][10]) == ("0, 1", f"{known}, gone")
    assert "failed 1, held 2, inconclusive 1" in text
    assert page.hrefs.count(f"#run-{known}") == 4


@pytest.mark.parametrize("content", ["{", "{}", '[{"name": "x"}]', "[1]"])
def test_a_file_that_holds_no_claims_is_one_line(tmp_path, monkeypatch, capsys, content):
    no_figures(monkeypatch)
    save(tmp_path, [run("uchida", "prune", 0, [point()])])
    tmp_path.joinpath("claims.json").write_text(content)
    assert call("--results", tmp_path) == 1
    assert re.fullmatch(r"error: \S+claims.json holds no claims .*; delete it\n", capsys.readouterr().err)
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "tables").exists()


def test_untouched_models_alone_make_a_page(tmp_path, monkeypatch):
    text, page = build(tmp_path, [run("none", "none", 0), run("uchida", "none", 0)], monkeypatch)
    assert "No attack was run." in text
    assert len(page.table("attack", "method")) == 4
    assert page.table("method", "fidelity")[1][1] == "+0.4"


def test_more_than_a_browser_holds_is_cut_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MOST_POINTS", 7)
    monkeypatch.setattr(html, "MOST_FIGURES", 1)
    monkeypatch.setattr(html, "MOST_CELLS", 1)
    runs = plausible(seeds=(0,), methods=("uchida",), attacks=("prune", "quantize"))
    text, page = build(tmp_path, runs, monkeypatch)
    assert len(page.table("attack", "method")) == 7
    assert "The first 7 of 24 points; all are in tables/strengths.csv." in text
    assert "1 more are not drawn here" in text
    assert text.count("too many cells") == 1
    assert (tmp_path / "tables" / "strengths.csv").read_text().count("\n") == 25


def test_runs_name_their_files_also_when_compacted(tmp_path, monkeypatch):
    runs = [run("uchida", "prune", 0, [point()])]
    run_id = runs[0]["rows"][0]["run_id"]
    no_figures(monkeypatch)
    file = tmp_path / "runs" / "uchida" / "prune" / f"{run_id}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(runs[0]))
    assert call("--results", tmp_path) == 0
    assert f"uchida/prune/{run_id}.json" in (tmp_path / "report.html").read_text()
    assert call("--results", tmp_path, "--compact") == 0
    assert call("--results", tmp_path) == 0
    assert "in runs.parquet" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.quick
def test_in_a_browser(tmp_path, monkeypatch):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path (Debian: apt-get install chromium)")
    runs = mixed()
    _, parsed = build(tmp_path, runs, monkeypatch)
    trouble: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True).new_page()
        page.on(
            "console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url) if request.url[:4] == "http" else None)
        page.goto(f"file://{tmp_path}/report.html")
        page.wait_for_selector("html[data-ready]", timeout=60_000)

        summary, points = page.locator("#summary .dt-container"), page.locator("#points .dt-container")
        body = [row.locator("td").all_inner_texts() for row in summary.locator("tbody tr").all()]
        assert [[cell.split() for cell in row] for row in body] == [
            [cell.split() for cell in row] for row in parsed.table("method", "model", "data", "fidelity")
        ]

        def column(name: str) -> list[str]:
            heads = points.locator("thead .dt-column-title").all_inner_texts()
            return points.locator(f"tbody tr td:nth-child({heads.index(name) + 1})").all_inner_texts()

        def click(name: str) -> None:
            points.locator("thead .dt-column-title").get_by_text(name, exact=True).click()

        click("log10 p")
        up = [float(text) for text in column("log10 p") if text != "–"]
        assert up == sorted(up)
        assert up[0] == pytest.approx(-77.1)
        click("log10 p")
        down = [float(text) for text in column("log10 p") if text != "–"]
        assert down == sorted(down, reverse=True)
        assert down[0] > -1

        info = points.locator(".dt-info")
        total = len(parsed.table("attack", "method"))
        assert f"of {total}" in info.inner_text()
        points.locator("input.dt-input[type=search]").first.fill("frequency")
        kept = [row for row in parsed.table("attack", "method") if row[1] == "frequency"]
        page.wait_for_function(f"document.querySelector('#points .dt-info').innerText.includes('of {len(kept)} ')")
        assert set(column("method")) == {"frequency"}
        points.locator("input.dt-input[type=search]").first.fill("")
        points.locator("thead th", has_text="verdict").locator(".dtcc-button_dropdown").click()
        page.locator(".dtcc-dropdown .dtcc-list-buttons button", has_text="failed").first.click()
        assert set(column("verdict")) == {"failed"}
        page.keyboard.press("Escape")

        cell = summary.locator("a", has_text="INVALID").first
        target = cell.get_attribute("href")
        cell.click()
        section = page.locator(target)
        assert section.is_visible()
        run_id = next(r["rows"][0]["run_id"] for r in runs if r["rows"][0]["method"] == "watermas")
        assert run_id in section.inner_text()
        assert "INVALID: the unmarked host verifies" in section.inner_text()
        section.locator("summary").click()
        assert '"max_damage": 5.0' in section.inner_text()
        assert page.locator(".provenance:visible").count() == 1

        page.locator("#summary div.figure").scroll_into_view_if_needed()
        page.wait_for_selector(
            "#summary .js-plotly-plot .heatmaplayer image, #summary .js-plotly-plot .heatmaplayer .hm"
        )
        box = page.locator("#summary .js-plotly-plot .nsewdrag").first.bounding_box()
        page.mouse.click(box["x"] + 20, box["y"] + 20)
        page.wait_for_function(f"location.hash !== '{target}'")
        assert page.locator(page.evaluate("location.hash")).is_visible()

        for width in (1400, 390):
            page.set_viewport_size({"width": width, "height": 844})
            height = page.evaluate("document.documentElement.scrollHeight")
            for y in range(0, height, 700):
                page.evaluate(f"window.scrollTo(0, {y})")
                page.wait_for_timeout(30)
            page.wait_for_function(
                "document.querySelectorAll('.js-plotly-plot').length === document.querySelectorAll('div.figure').length"
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert trouble == []
