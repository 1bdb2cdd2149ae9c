"""What a sweep would train: its jobs are Hydra's, and what is there is not made again."""

from __future__ import annotations

import pytest

from bench import plan
from bench.cli.compose import composed
from bench.run import job
from tests.helpers import TINY


@pytest.mark.parametrize(
    ("words", "many"),
    [
        (["method=uchida"], 1),
        (["method=uchida,neuralmark", "seed=range(0,3)"], 6),
        (["experiment=robust", "method=uchida", "attack=prune,noise"], 2),
        (["experiment=robust", "method=uchida,vote"], 2 * 21),
        (["method=uchida", "attack=glob(*,exclude=[detect,surrogate,postprocess,residual])"], 25),
    ],
)
def test_the_jobs_are_those_of_the_sweep(words, many):
    made = plan.jobs(words)
    assert len(made) == len({tuple(one) for one in made}) == many
    assert composed(made[0]).seed == 0


def test_an_untouched_folder_knows_nothing(tmp_path, capsys):
    plan.show(["method=uchida", "attack=prune,noise", "seed=0,1", *TINY, f"results_dir={tmp_path}", "jobs=2"])
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:4]] == [
        ["hosts", "0", "2"],
        ["marks", "0", "2"],
        ["attacks", "0", "4"],
    ]
    assert "no host like it was made yet: test_resnet on digits" in out


@pytest.mark.slow
@pytest.mark.quick
def test_what_is_there_is_counted_and_tells_how_long_the_rest_takes(tmp_path):
    words = ["method=uchida", "method.n_bits=64", *TINY, "train.epochs=1", f"results_dir={tmp_path}", "verify.keys=10"]
    assert job(composed([*words, "attack=noise", "attack.sigmas=[0.1]"])).code == 0
    work = plan.planned([*words, "attack=noise", "attack.sigmas=[0.1],[0.2]", "seed=0,1"])
    assert {name: (len(one.done), len(one.todo)) for name, one in work.items()} == {
        "host": (1, 1),
        "mark": (1, 1),
        "attack": (1, 3),
    }
    assert work["host"].seconds > 0
    assert work["mark"].seconds > 0
    assert work["host"].unknown == work["mark"].unknown == []
    assert work["attack"].unknown == ["noise on test_resnet, digits"]
