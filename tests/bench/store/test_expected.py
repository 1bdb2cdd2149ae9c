"""What papers report of a run: read from a configuration, refused where it makes no sense, kept in run files."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from bench import run
from bench.cli.usage import options
from bench.errors import ConfigError
from bench.store import compact, expected
from bench.store.runs import load, read_run, read_runs
from tests.fake_runs import plausible, point, save
from tests.fake_runs import run as fake
from tests.helpers import ATTACKS, METHODS, ROOT, config, tiny

ENTRY = {"quantity": "detection", "attack": "prune", "knob": "ratio", "strength": 0.9, "published": 50}
NOTED = {"source": "Somebody 2020", "table": "", "quantity": "detection", "knob": "ratio", "strength": 0.9}
NOTED |= {"published": 50, "setting": {}, "note": ""}


def asked(*entries: dict, **block):
    """A composed configuration with an `expected` block."""
    cfg = config("method=uchida", "attack=prune")
    OmegaConf.set_struct(cfg, False)
    cfg.expected = {"source": "Somebody 2020", "entries": [*entries], **block}
    return cfg


def of(*entries: dict, method="uchida", attack="prune", **block) -> list[dict]:
    return expected.of(asked(*entries, **block), method, attack)


def test_entries_are_those_of_the_method_and_the_attack():
    several = {**ENTRY, "published": {"uchida": 53.9, "neuralmark": 100}}
    assert of(several) == [{**NOTED, "published": 53.9}]
    assert of(several, method="neuralmark")[0]["published"] == 100
    assert of(several, method="frequency") == []
    assert of(several, attack="none") == []
    host = {"quantity": "accuracy", "knob": "host", "published": 94.76}
    for attack in ("none", "prune"):  # every attack's run has the host
        assert of(host, attack=attack)[0]["published"] == 94.76
    assert expected.of(config(), "uchida", "prune") == []


def test_an_entry_adds_to_the_setting_of_its_block():
    shared = {"model": "resnet18_cifar", "train.epochs": 200}
    (found,) = of({**ENTRY, "setting": {"train.epochs": 100, "attack.scope": "layer"}}, setting=shared)
    assert found["setting"] == {"model": "resnet18_cifar", "train.epochs": 100, "attack.scope": "layer"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"quantity": "detektion"}, "quantity=detektion: not known; did you mean 'detection'?"),
        ({"published": None}, "published=None: must be percent, from 0 to 100"),
        ({"published": {"uchida": "all"}}, "uchida=all: must be percent"),
        ({"published": 101}, "published=101: must be percent"),
        ({"published": True}, "published=True: must be percent"),
        ({"published": {}}, "published is empty"),
        ({"strength": "most"}, "strength=most: must be a number, null or last"),
        ({"attack": None}, "knob=ratio, attack=None: knobs host and none are of no attack"),
        ({"knob": "host"}, "knob=host, attack=prune: knobs host and none are of no attack"),
        ({"metod": "uchida"}, "expected.entries[0].metod: no such key; "),
        ({"setting": {"train.epoch": 200}}, "setting train.epoch: no such option; did you mean 'epochs'"),
        ({"setting": {"tran.epochs": 200}}, "setting tran.epochs: no such option; did you mean 'train'"),
    ],
)
def test_a_bad_entry_is_one_line(entry, said):
    with pytest.raises(ConfigError) as error:
        of({**ENTRY, **entry})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("expected")
    assert said in str(error.value)


def test_a_missing_value_or_source_is_one_line():
    for name in ("published", "quantity"):
        with pytest.raises(ConfigError, match=rf"expected.entries\[0\].*{name}"):
            of({key: value for key, value in ENTRY.items() if key != name})
    for block, said in (
        ({"source": None}, "source is missing"),
        ({"entries": {}}, "must have source, setting, entries"),
        ({"value": 1}, "expected.value: no such key"),
        ({"entries": ["x"]}, r"entries\[0\]=x"),
    ):
        with pytest.raises(ConfigError, match=said):
            of(ENTRY, **block)
    cfg = config()
    OmegaConf.set_struct(cfg, False)
    cfg.expected = 5
    with pytest.raises(ConfigError, match="must have source"):
        expected.of(cfg, "uchida", "prune")


def test_a_bad_block_costs_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.train.Fit.epochs", None)
    cfg = asked({**ENTRY, "quantity": "x"})
    cfg.results_dir, cfg.device = str(tmp_path), "cpu"
    outcome = run.job(cfg)
    assert (outcome.status, outcome.code) == ("failed", 2)
    assert outcome.message.startswith("expected.entries[0]: expected.quantity=x")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "published").glob("*.yaml")))
def test_what_is_published_is_of_methods_and_attacks_that_there_are(name):
    source, entries = expected.parsed(config(f"+published@expected={name}"))
    assert source
    for entry in entries:
        named = entry.published if isinstance(entry.published, dict) else {}
        assert set(named) <= {*METHODS}
        assert entry.attack in (None, *ATTACKS)
        for key in ("model", "data"):
            assert entry.setting[key] in options(key)


def test_no_hash_knows_of_it(tmp_path):
    words = (f"results_dir={tmp_path}", "scale=small", "method=uchida", "attack=overwrite", "device=cpu")
    plain = run.prepare(config(*words))
    told = run.prepare(config(*words, "+published@expected=neuralmark_2025"))
    assert [e["published"] for e in told.expected] == [94.76, 94.87, 53.9, 62.1]
    assert (plain.expected, plain.hashes) == ([], told.hashes)
    assert (plain.mark_identity, plain.host_identity) == (told.mark_identity, told.host_identity)
    assert "expected" not in run.about(told).config
    assert "expected" not in run.resolved(told)


@pytest.mark.slow
@pytest.mark.quick
def test_a_run_keeps_it_and_one_that_was_made_before_takes_it_up(results, tmp_path):
    cfg = tiny(tmp_path, "uchida", "prune", f"cache.root={results}/cache", "verify.keys=10")
    first = run.run(cfg)
    before = first.path.read_bytes()
    assert "expected" not in json.loads(before)
    compact.compact(tmp_path / "runs")
    assert not first.path.exists()
    OmegaConf.set_struct(cfg, False)
    cfg.expected = {"source": "Somebody 2020", "entries": [ENTRY]}
    again = run.run(cfg)
    assert (again.status, again.path) == ("cached", first.path)
    noted = json.loads(first.path.read_bytes())
    assert noted["expected"] == [NOTED]
    assert list(noted)[-5:] == ["expected", "knobs", "stages", "rows", "check"]
    rest = {k: v for k, v in json.loads(before).items() if k != "check"}  # which is of all the rest
    assert {k: v for k, v in noted.items() if k not in ("expected", "check")} == rest
    when = first.path.stat().st_mtime_ns
    assert run.run(cfg).status == "cached"
    del cfg.expected  # asked without the experiment: what is known stays known
    assert run.run(cfg).status == "cached"
    assert first.path.stat().st_mtime_ns == when
    made = run.run(tiny(tmp_path, "uchida", "prune", f"cache.root={results}/cache", "verify.keys=10", "force=true"))
    assert "expected" not in read_run(made.path)


def with_expected() -> list[dict]:
    """Run files of before there was such a block, and some that have it."""
    runs = plausible(seeds=(0, 1), attacks=("none", "prune"))
    told = fake("frequency", "prune", 0, [point()])
    rows = told.pop("rows")
    entries = [NOTED, {**NOTED, "strength": None, "setting": {"data": "cifar10", "attack.ratios": [0.5, 1], "x": None}}]
    return [*runs, {**told, "expected": entries, "rows": rows}]


def test_files_and_parquet_hold_it_and_those_without_it_stay_as_they_are(tmp_path):
    folder = save(tmp_path, with_expected()) / "runs"
    before, frame = json.dumps(read_runs(folder)), load(folder)
    assert before.count('"expected"') == 1
    assert compact.compact(folder).startswith("9 run files gathered: 9 runs")
    assert json.dumps(read_runs(folder)) == before
    assert load(folder).equals(frame)
    assert compact.compact(folder).startswith("0 run files gathered")


def test_a_parquet_of_before_takes_up_what_has_it(tmp_path, monkeypatch):
    runs = with_expected()
    folder = save(tmp_path, runs[:-1]) / "runs"
    with monkeypatch.context() as old:  # written when no run had such a block
        old.setattr(compact, "BLOCKS", ("env", "command", "controls", "outputs"))
        compact.compact(folder)
    save(tmp_path, [runs[-1]])
    before = json.dumps(read_runs(folder))
    assert compact.compact(folder).startswith("1 run files gathered: 9 runs")
    assert json.dumps(read_runs(folder)) == before
    assert before.count('"expected"') == 1
