"""Claims: the files in conf/experiment/claims, and what the command line makes of them."""

from __future__ import annotations

import pytest

from bench import run
from bench.claims.__main__ import main
from bench.claims.claim import names, read
from bench.claims.criteria import CRITERIA
from bench.claims.findings import enough
from bench.claims.judging import SEEDS
from bench.errors import ConfigError
from tests.helpers import ROOT, config, tiny


def test_all_claims_share_hosts_and_marks():
    """One training schedule and one data set: what costs time is done once for all of them."""
    everywhere = (cfg for cfg in map(first, names()) if cfg.task._target_.endswith(".Classification"))
    found = {str((cfg.train, cfg.data)) for cfg in everywhere}
    assert len(found) == 1
    plain = config()
    assert found == {str((plain.train, plain.data))}


def first(name: str):
    return config(f"experiment=claims/{name}")


@pytest.mark.parametrize("name", names())
def test_a_claims_file_says_what_its_criterion_needs(name):
    claim = read(name, ["results_dir=unused"])
    assert claim.paper
    assert len(claim.text.split()) > 4
    assert claim.criterion in CRITERIA
    axes = {}
    for words in claim.jobs:
        for word in words[1:]:
            key, _, value = word.partition("=")
            axes.setdefault(key, set()).add(value)
    assert len(axes["seed"]) >= SEEDS
    # What it compares is what it sweeps.
    if axis := claim.parameters.get("axis"):
        named = ("better", "worse", "resists", "falls", "fails", "succeeds", "hidden", "shows")
        compared = {str(v) for k, v in claim.parameters.items() if k in named}
        assert compared <= axes[axis]
        assert len(axes[axis]) > 1
    if knobs := claim.parameters.get("knobs"):
        source = (ROOT / "attacks" / f"{first(name).attack._target_.split('.')[1]}.py").read_text()
        assert all(f'"{knob}"' in source for knob in knobs)


def test_a_claim_is_in_no_hash(tmp_path):
    plain = run.prepare(tiny(tmp_path, "uchida", "none"))
    claimed = run.prepare(tiny(tmp_path, "uchida", "none", "experiment=claims/uchida_accuracy"))
    assert "claim" in claimed.cfg
    assert claimed.hashes == plain.hashes


@pytest.mark.slow
@pytest.mark.quick
def test_what_the_files_suggest_and_sweep_can_be_decided():
    """As many marks as a count needs, on the command lines in comments too."""
    tried = 0
    for name in names():
        text = (ROOT / "conf" / "experiment" / "claims" / f"{name}.yaml").read_text()
        lines = [line.split()[4:] for line in text.splitlines() if line.startswith("#   python -m bench.claims ")]
        for words in ([name], *lines):
            claim = read(words[0], words[1:])
            tried += len(words) > 1
            if claim.criterion == "verified_everywhere":
                assert len(claim.jobs) >= enough(claim.parameters["least"])
            elif claim.criterion == "forged_only":
                rate = claim.parameters["rate"]
                assert len(claim.jobs) / 2 >= max(enough(rate), enough(1 - rate))
    assert tried == 1


def test_a_value_given_twice_is_told():
    with pytest.raises(ConfigError, match="1 stands there twice"):
        read("uchida_pruning", ["seed=0,1,1"])


def test_an_axis_on_the_command_line_replaces_the_files():
    claim = read("neuralmark_families", ["model=vgg13_bn", "seed=5,6", "train.epochs=3"])
    assert [words[1:] for words in claim.jobs] == [
        ["model=vgg13_bn", f"seed={seed}", "train.epochs=3"] for seed in (5, 6)
    ]
    assert claim.command == "python -m bench.claims neuralmark_families model=vgg13_bn seed=5,6 train.epochs=3"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["uchida_prunin"], "unknown claim 'uchida_prunin'; did you mean 'uchida_pruning'"),
        (["uchida_pruning", "method.nbits=3"], "method.nbits: no such key; did you mean 'n_bits'"),
        (["uchida_pruning", "data=cifar11"], "unknown data 'cifar11'; did you mean 'cifar10'"),
        (["uchida_pruning", "seed=interval(0,3)"], "an interval cannot be enumerated"),
        (
            ["uchida_pruning", "claim.criterion.name=no_bits"],
            "criterion=no_bits: not known; did you mean 'no_bit_lost'",
        ),
        (["uchida_pruning", "+claim.criterion.least=3"], "got an unexpected keyword argument 'least'"),
        (["experiment=digits"], "chooses the experiment itself"),
        (["--force"], "--force: no such flag"),
        (["uchida_accuracy", "method=uchida,neuralmark"], "method=uchida,neuralmark: a verdict is on one value of it"),
        (["uchida_pruning", "method.n_bits=64,256"], "method.n_bits=64,256: a verdict is on one value of it"),
        (
            ["neuralmark_rounds", "train.epochs=1,2"],
            "one value of it; method.rounds and seeds may",
        ),
        (
            ["uchida_pruning", "launcher=joblib"],
            "python -m bench experiment=claims/NAME launcher=joblib makes",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.setattr("bench.run.job", None)
    assert main([*words, f"results_dir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_list_of_claims_is_said_before_anything_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.run.job", None)
    for content in ("{", '{"a": 1}', '[{"name": "x"}]'):
        (tmp_path / "claims.json").write_text(content)
        assert main(["uchida_pruning", f"results_dir={tmp_path}"]) == 1
        assert "holds no claims" in capsys.readouterr().err
        assert (tmp_path / "claims.json").read_text() == content
