"""The study of strangers that were aligned: what it reads of whom, and its command."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from bench import stages
from bench.errors import ConfigError, UserError
from bench.models import align
from bench.run import prepare
from bench.studies import alignment
from tests.helpers import TINY, tiny


def test_pairs_are_strangers_read_with_the_owners_key(results):
    x = prepare(tiny(results, "uchida", "none"))
    rows = list(alignment.pairs(x, 3))
    assert rows == list(alignment.pairs(x, 3))
    assert [row["stranger"] for row in rows] == [0, 1, 2]
    model, key = stages.opened(x, stages.mark(x))
    other = alignment.stranger(x, 1, 0)
    assert not torch.equal(other.get_parameter(key.where[0]), alignment.stranger(x, 2, 0).get_parameter(key.where[0]))
    reference = align.prepared(model, x.method.unread(model, key), x.task.example())
    assert rows[1]["ber"] == alignment.read(x, align.aligned(reference, other).model, key)[0]
    assert rows[1]["unaligned"] == alignment.read(x, other, key)[0] != rows[1]["ber"]
    assert all(row["moved"] == len(reference.families) and row["score"] < 0.2 for row in rows)
    looking = list(alignment.pairs(x, 3, looking=True))
    assert [row["ber"] for row in looking] != [row["ber"] for row in rows]  # another order


def test_trained_strangers_are_no_untrained_ones(results):
    x = prepare(tiny(results, "uchida", "none"))
    plain, trained, again = (alignment.stranger(x, 0, epochs) for epochs in (0, 1, 1))
    assert torch.equal(trained.conv1[0].weight, again.conv1[0].weight)
    assert not torch.equal(plain.conv1[0].weight, trained.conv1[0].weight)


def test_summaries_are_in_standard_errors():
    row = {"bits": 64, "log10_p": 0.0, "accepts": True, "unaligned": 0.5, "score": 0.1, "converged": True}
    frame = pd.DataFrame([{**row, "reference": i % 2, "ber": 0.5 + (1 if i < 8 else -1) / 16} for i in range(16)])
    frame.loc[0, "log10_p"] = -9.5
    (first, _, everything) = alignment.summaries(frame, 1e-9)
    assert (first["reference"], first["pairs"], first["detected"]) == (0, 8, 1)
    assert (everything["z"], everything["mean"], everything["binomial sd"]) == (0, 0.5, 0.5 / 8)
    assert everything["least"] == 0.4375
    frame["ber"] = 0.5 - 0.5 / 8
    assert next(alignment.summaries(frame[frame["reference"] == 0], 1e-9))["z"] == pytest.approx(-(8**0.5))


def test_the_command_writes_a_row_for_each_pair(results, capsys):
    words = [*TINY, "method=uchida", "method.n_bits=64", f"results_dir={results}"]
    alignment.show([*words, "pairs=3", "references=2"])
    shown = capsys.readouterr().out.splitlines()
    table = pd.read_csv(shown[-1])
    assert table[["reference", "stranger"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0]]
    assert "binomial sd" in shown[1]
    assert shown[-2].split()[:2] == ["all", "3"]


def test_what_a_user_gets_wrong_is_one_line(results):
    for word in ("pairs=0", "pairs=many", "looking=perhaps", "epochs=-1"):
        with pytest.raises(ConfigError, match=word.partition("=")[0]):
            alignment.parsed([word])
    assert alignment.parsed(["method=uchida", "epochs=2"])[1] == ["method=uchida"]
    with pytest.raises(UserError, match="marks no weights"):
        list(alignment.pairs(prepare(tiny(results, "none", "none")), 1))
