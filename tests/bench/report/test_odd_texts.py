"""Texts out of run files: whatever they hold, no format takes it for more than text."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from bench.report import paper, tables
from bench.report.content import assemble
from bench.report.figures import static
from bench.report.page.page import page
from bench.report.words import harmless
from tests.fake_runs import run

ODD = ["\x1b[31mred\x1b[0m", "a\u202eb", "[x](http://y)", "$\\frac{", "=1+1", "<script>alert(1)</script>", "a|b\\c_d"]


def test_what_is_harmless_stays():
    assert harmless("ResNet-18 (k=3) [.1, .2], übung") == "ResNet-18 (k=3) [.1, .2], übung"
    assert harmless("a\x1b[31m\u202e](b)") == "a\ufffd[31m\ufffd] (b)"


@pytest.mark.parametrize("text", ODD)
def test_a_report_of_odd_texts_comes_out_and_holds_them_as_text(tmp_path, text):
    points = [{"knob": text, "strength": s, "ber": 0.1, "utility": 97.0} for s in (0.3, 0.6)]
    points.append({"knob": "x", "status": "failed", "error": f"RuntimeError: {text}"})
    content = assemble([run("uchida", "prune", points=points, model=text, data=text)])
    files = [*(tables.markdown(*part) for part in content.parts.values())]
    files += [paper.latex(*part, name) for name, part in content.parts.items()]
    files += [tables.csv(frame) for frame in content.frames.values()]
    for made in files:
        assert "\x1b" not in made
        assert "](http" not in made
    html = page(content, [tmp_path], None)
    assert "<script>alert" not in html
    assert "\x1b" not in html
    assert static.draw(content, tmp_path, ["svg"])
    for frame in content.frames.values():
        for cells in csv.reader(io.StringIO(tables.csv(frame))):
            assert not any(cell.startswith("=") for cell in cells)


def test_numbers_keep_their_signs_in_csv():
    frame = pd.DataFrame({"a": [-1.5, 2], "b": ["-3.5", "=1+1"], "c": ["@x", None]})
    assert tables.csv(frame) == "a,b,c\n-1.5,-3.5,'@x\n2.0,'=1+1,\n"
