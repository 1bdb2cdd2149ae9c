"""Epochs of the host and of embedding apart from the schedule's: what is named by them, and what is not."""

from __future__ import annotations

import pytest

from bench import run, spec, stages
from bench.errors import ConfigError
from tests.helpers import config, tiny

BASE = ("model=timm", "model.name=test_resnet", "device=cpu", "data=digits")


def made(results, *words):
    return run.prepare(config(*BASE, *words, f"results_dir={results}"))


def names(x) -> tuple:
    host, mark, baseline = (spec.digest(i) for i in (x.host_identity, x.mark_identity, x.baseline_identity))
    return x.run_id, host, mark, baseline


@pytest.mark.parametrize("method", ["neuralmark", "uchida"])
def test_what_is_said_and_is_so_anyway_has_the_same_name(results, method):
    plain = made(results, f"method={method}", "train.epochs=6")
    assert names(made(results, f"method={method}", "train.epochs=6", "host.epochs=6")) == names(plain)
    assert made(results, f"method={method}", "train.epochs=6", "host.epochs=0").run_id != plain.run_id


def test_a_host_of_n_epochs_is_one_whoever_says_so(results):
    one, two = made(results, "train.epochs=6"), made(results, "train.epochs=9", "host.epochs=6")
    assert one.host_identity == two.host_identity
    assert one.mark_identity != two.mark_identity
    assert (two.host_train.epochs, two.mark_train.epochs) == (6, 9)


def test_a_mark_that_starts_untrained_does_not_depend_on_the_host(results):
    words = "method=uchida", "train.epochs=6"
    one, two = made(results, *words), made(results, *words, "host.epochs=0")
    assert one.mark_identity == two.mark_identity
    tuned = [made(results, *words, "method.situation=finetune", more) for more in ("host.epochs=6", "host.epochs=0")]
    assert tuned[0].mark_identity != tuned[1].mark_identity
    assert tuned[0].baseline_identity != tuned[1].baseline_identity


def test_epochs_of_embedding(results):
    words = "method=uchida", "train.epochs=6", "method.situation=finetune"
    plain, short = made(results, *words), made(results, *words, "method.epochs=2")
    assert plain.host_identity == short.host_identity
    assert plain.mark_identity != short.mark_identity
    assert plain.baseline_identity != short.baseline_identity  # which trains as long as the mark
    assert (short.host_train.epochs, short.mark_train.epochs) == (6, 2)
    assert stages.owner_fit(short).train.epochs == 2
    assert stages.owner_fit(short, "host").train.epochs == 6


def test_bounds(results):
    for word in ("host.epochs=-1", "method.epochs=-1", "host.epochs=0.5"):
        with pytest.raises(ConfigError, match="epochs"):
            made(results, word)


@pytest.mark.slow
@pytest.mark.quick
def test_a_checkpoint_is_the_host_as_it_is(results, tmp_path):
    from safetensors.torch import load_file

    first = run.prepare(tiny(results, "uchida", "none"))
    held = stages.host(first).path / "model.safetensors"
    words = (f"model.checkpoint={held}", "host.epochs=0", "method.epochs=2", "method.situation=finetune")
    x = run.prepare(tiny(results, "uchida", "none", *words, "method.n_bits=64"))
    entry = stages.host(x)
    own, taken = load_file(held), load_file(entry.path / "model.safetensors")
    assert all((own[k] == taken[k]).all() for k in own)
    rows = run.run(tiny(results, "uchida", "none", *words, "method.n_bits=64", "verify.keys=10")).rows
    assert [row.knob for row in rows] == ["host", "none"]
