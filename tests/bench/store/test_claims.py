"""The file of verdicts."""

from __future__ import annotations

import threading

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
