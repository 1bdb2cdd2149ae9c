"""The scripts that docs/library.md names run as they are, in an empty folder."""

from __future__ import annotations

import runpy

import pytest

from tests.helpers import ROOT


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(("script", "needs"), [("own_loop", "bench"), ("accelerate_loop", "accelerate")])
def test_scripts_run_and_find_their_mark(script, needs, tmp_path, monkeypatch, capsys):
    pytest.importorskip(needs)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "docs" / "library" / f"{script}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "The mark is present" in out
    assert {p.name for p in tmp_path.iterdir()} >= {"key.safetensors"}
