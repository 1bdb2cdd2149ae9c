"""The site: every link leads somewhere, its order is the rule's, nothing in it comes from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.report.content import assemble
from bench.site import __main__ as site
from bench.site import docs, leaderboard
from bench.store.files import write_text
from tests.bench.report.test_html import EVIL, Page
from tests.fake_runs import plausible, point, run, save

ATTACKS = ("none", "prune", "forge")


def made(folder: Path, runs: list[dict], name: str = "reference") -> Path:
    """Runs below <folder>/results/<name>, with a README."""
    place = save(folder / "aside", runs) / "runs"
    at = folder / "results" / name
    at.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(place, at)
    write_text(at / "README.md", f"# Results of {name}\n\nWhat `it` is, in a [few](x.md) words:\n\n    a command\n")
    return at.parent


def call(*args: object) -> int:
    return site.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    results = made(folder, plausible(seeds=(0, 1), attacks=ATTACKS))
    made(folder, [run("none", "prune", 0, [point()], model=f"<b>{EVIL}")], "other")
    assert call("--results", results, "--out", folder / "site") == 0
    return folder / "site"


def test_every_link_leads_somewhere(built):
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in built.rglob("*.html")}
    names = {path.relative_to(built.resolve()).as_posix() for path in pages}
    assert names == {
        "index.html",
        "add.html",
        *(f"methods/{name}.html" for name in ("neuralmark", "none", "uchida")),
        *(f"attacks/{name}.html" for name in ("prune", "forge")),
        *(f"results/{name}.html" for name in ("reference", "other")),
    }
    for path, page in pages.items():
        for href in page.hrefs:
            if href.startswith("https://"):
                assert href.startswith(("https://github.com/", "https://arxiv.org/abs/"))
                continue
            file, _, anchor = href.partition("#")
            to = (path.parent / file).resolve() if file else path
            assert to in pages, f"{path.name}: {href}"
            assert not anchor or anchor in pages[to].ids, f"{path.name}: {href}"
        for source in page.loads:
            assert source.startswith("data:") or (path.parent / source).is_file(), source
        assert len(page.ids) == len(set(page.ids))
        assert "img" not in page.tags


def test_the_same_results_give_the_same_bytes_and_what_is_gone_goes(built, tmp_path):
    results = made(tmp_path, plausible(seeds=(0,), attacks=("none", "prune")))
    before = made(tmp_path, [run("watermas", "noise", 0, [point()])], "gone")
    out = tmp_path / "site"
    assert call("--results", results, "--out", out) == 0
    assert (out / "methods" / "watermas.html").is_file()
    shutil.rmtree(before / "gone")
    texts = []
    for _ in range(2):
        assert call("--results", results, "--out", out) == 0
        texts.append({path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert texts[0] == texts[1]
    assert "watermas.html" not in texts[0]


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    results = made(tmp_path, [run("uchida", "prune", 0, [point()])])
    write_text(tmp_path / "mine" / "index.html", "mine")
    assert call("--results", results, "--out", tmp_path / "mine") == 2
    assert "is no site" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["index.html"]


def test_a_method_that_is_no_name_writes_no_file(tmp_path, capsys):
    results = made(tmp_path, [run("uchida", "prune", 0, [point()])])
    file = next(results.rglob("*.json"))
    file.write_text(file.read_text().replace('"method": "uchida"', '"method": "../../uchida"'))
    assert call("--results", results, "--out", tmp_path / "site") == 1
    assert "no name of a method" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("words", [["--results", "nowhere"], ["--runs", "nowhere"], ["--check", "nowhere"]])
def test_what_is_not_there_is_said_in_a_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*words) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "site").exists()


def removed(method: str, *, forged: bool = False, host: float = 0.5) -> list[dict]:
    """A mark that pruning removes for nothing, and whose claims are forged or not."""
    claim = point("flip", None, claim_ber=0.0, claim_detected=True) if forged else point("tries", 10, claim_ber=0.5)
    return [
        run(method, "prune", 0, [point(ber=0.5)]),
        run(method, "forge", 0, [claim], goal="forge"),
    ]


def test_equals_share_a_place_and_a_failed_control_has_none():
    runs = [*removed("uchida"), *removed("vote"), *removed("greedy", forged=True)]
    kept = [run("neuralmark", "prune", 0, [point(ber=0.0)]), run("neuralmark", "forge", 0, [], goal="forge")]
    bad = run("watermas", "prune", 0, [point(ber=0.0)], controls={"random_keys": 1000, "false_positives": 900})
    for row in bad["rows"]:
        if row["knob"] == "host":
            row |= {"ber": 0.0, "log10_p": -77.0, "detected": True}
    lines = leaderboard.lines(assemble([*runs, *kept, bad]))
    assert [(line.place, line.label) for line in lines] == [
        ("1", "neuralmark"),
        ("2=", "uchida"),
        ("2=", "vote"),
        ("4", "greedy"),
        ("", "watermas"),
    ]
    assert [line.removed for line in lines[:4]] == [0, *[lines[1].tried] * 3]
    assert lines[3].claims == ("forged (flip)", "bad")


def test_docs_are_the_codes_own():
    found = docs.of("methods.neuralmark.Neuralmark")
    assert found.paper == "Yao, Song, Jin: NeuralMark, a hashed watermark filter (arXiv 2507.11137, AAAI 2026)"
    assert (found.year, found.arxiv) == ("2026", "2507.11137")
    assert found.code == "https://github.com/AIResearch-Group/NeuralMark"
    assert any("SHAKE-256" in part for part in found.text)
    assert docs.of("nobody.knows.It") == docs.of(None) == docs.NOTHING
    assert ("k", "512", "") in docs.options("method", "neuralmark")


def test_every_method_has_a_paper_and_a_year():
    for path in sorted(Path("methods").glob("[a-z]*.py")):
        of = docs.of(f"methods.{path.stem}.{path.stem.capitalize()}")
        assert of.paper, path
        assert path.stem == "none" or of.year, path


@pytest.mark.slow
@pytest.mark.quick
def test_in_a_browser_at_two_widths(built):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path (Debian: apt-get install chromium)")
    trouble: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (1400, 390):
            page = browser.new_context(viewport={"width": width, "height": 900}, offline=True).new_page()
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
            page.on("request", lambda request: trouble.append(request.url) if request.url[:4] == "http" else None)
            page.goto(f"file://{built}/index.html")
            page.wait_for_selector("html[data-ready]", timeout=60_000)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            board = page.locator("section table.data").first
            assert board.locator("tbody tr").count() == 2
            page.locator("div.figure").first.scroll_into_view_if_needed()
            page.wait_for_selector("div.figure svg")
            board.locator("tbody a").first.click()
            page.wait_for_selector("html[data-ready]", timeout=60_000)
            assert "/methods/" in page.url
            assert page.url.endswith("#reference")
            card = page.locator("details.card").first
            card.locator("summary").first.click()
            assert "python -m bench method=" in card.inner_text()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert trouble == []
