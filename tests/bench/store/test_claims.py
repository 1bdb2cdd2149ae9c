"""The file of verdicts."""

from __future__ import annotations

import json
import threading

import pytest

from bench.errors import UserError
from bench.store import claims as verdicts


def test_processes_that_write_at_once_lose_no_verdict(tmp_path):
    path = tmp_path / "claims.json"

    def entry(i):
        return dict.fromkeys(verdicts.COLUMNS, "x") | {"name": f"claim{i:02}"}

    threads = [threading.Thread(target=verdicts.remember, args=(path, entry(i))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e["name"] for e in verdicts.read(path)] == [f"claim{i:02}" for i in range(12)]


def test_entries_of_before_there_were_published_values_are_read(tmp_path):
    path = tmp_path / "claims.json"
    old = {name: "x" for name in verdicts.COLUMNS if name != "published"}
    path.write_text(json.dumps([old]))
    assert verdicts.read(path) == [{**old, "published": ""}]
    assert verdicts.remember(path, {**old, "name": "y", "published": "all"})[0] == {**old, "published": ""}
    assert [entry["published"] for entry in verdicts.read(path)] == ["", "all"]
    for name in ("text", "verdict"):
        path.write_text(json.dumps([{key: value for key, value in old.items() if key != name}]))
        with pytest.raises(UserError, match="holds no claims"):
            verdicts.read(path)


def test_an_entry_that_changed_is_not_believed(tmp_path):
    path = tmp_path / "claims.json"
    entry = dict.fromkeys(verdicts.COLUMNS, "x") | {"verdict": "held", "command": "python -m bench.claims a"}
    assert verdicts.remember(path, entry) == [entry]
    assert verdicts.remember(path, entry) == verdicts.read(path) == [entry]
    content = path.read_text()
    for changed in (content.replace('"held"', '"hell"'), content.replace('"check"', '"chack"')):
        path.write_text(changed)
        with pytest.raises(UserError, match="holds no claims"):
            verdicts.read(path)
