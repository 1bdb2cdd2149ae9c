"""Files among the runs that are none: the report comes out with the rest, names one and counts them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from bench.errors import UserError
from bench.store.compact import compact
from bench.store.runfile import BrokenRun, read_loose
from bench.store.runs import load, read_runs
from tests.fake_runs import run
from tests.odd import changed

POINTS = [{"knob": "ratio", "strength": s, "ber": b, "utility": 97.0} for s, b in ((0.3, 0.0), (0.6, 0.4))]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_odd_files_are_left_out_or_do_no_harm(tmp_path, part):
    """Of 100: each is refused in one line, or what it says can be reported."""
    from bench.report.content import assemble
    from bench.report.page.page import page

    rng = np.random.default_rng(part)
    good = run("uchida", "prune", points=POINTS)
    for i in range(25):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "good.json").write_text(json.dumps(good))
        (folder / "odd.json").write_text(json.dumps(changed(run("uchida", "prune", 1, POINTS), rng)))
        odd: list[str] = []
        runs = read_runs(folder, odd)
        assert len(runs) + len(odd) == 2
        assert all(line.startswith(f"{folder / 'odd.json'} is not a run file") and "\n" not in line for line in odd)
        content = assemble([found for found in runs if found["rows"]])
        assert "Watermark benchmark" in page(content, [folder], None, len(odd))


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '{"rows": 3}', "[" * 10**5, '{"config": {}, "env": {}, "rows": [1]}']
)
def test_what_is_no_run_file_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BrokenRun, match=r"a\.json is not a run file"):
        read_loose(tmp_path / "a.json")
    with pytest.raises(UserError, match="no run among them"):
        read_runs(tmp_path, [])


def test_a_file_that_cannot_be_read_now_is_not_called_broken(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps(run()))

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(UserError, match="cannot be read now") as error:
        read_loose(tmp_path / "a.json")
    assert not isinstance(error.value, BrokenRun)


def test_every_flipped_byte_of_compacted_runs_is_found(tmp_path):
    for seed in range(6):
        (tmp_path / f"{seed}.json").write_text(json.dumps(run("uchida", "prune", seed, POINTS)))
    before = read_runs(tmp_path)
    compact(tmp_path)
    file, rng = tmp_path / "runs.parquet", np.random.default_rng(0)
    content = file.read_bytes()
    silent = 0
    for at in [*rng.permutation(len(content))[:400], *range(len(content) - 8, len(content) - 4)]:
        odd = bytearray(content)
        odd[at] ^= 1 << rng.integers(8)
        file.write_bytes(odd)
        try:
            silent += read_runs(tmp_path) != before
        except UserError:
            continue
    assert silent == 0
    file.write_bytes(content)
    assert len(load(tmp_path)) == 6 * 4
    assert os.listdir(tmp_path)


def test_every_flipped_bit_of_a_run_file_is_found(tmp_path):
    from bench.store.runfile import write_run
    from bench.types import Row

    made, path, rng = run("uchida", "prune", 0, POINTS), tmp_path / "a.json", np.random.default_rng(0)
    rows = [Row(**row) for row in made["rows"]]
    write_run(path, made["config"], made["env"], made["command"], made["controls"], rows)
    before, content = read_loose(path), path.read_bytes()
    name = content.rindex(b'"check"')
    for at in [*rng.permutation(len(content))[:200], *range(name, name + 7)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :])
        with pytest.raises(BrokenRun):
            read_loose(path)
    path.write_bytes(content.replace(b'"ber": 0.4', b'"ber": 0.1'))
    with pytest.raises(BrokenRun, match="checksum differs: it was changed after it was written"):
        read_loose(path)
    path.write_bytes(content)
    assert read_loose(path) == before == made
