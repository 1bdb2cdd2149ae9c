"""The command line as it is read before Hydra: help by group, folders of one's own, pipes that close."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import plan, spec
from bench.cli import usage
from bench.cli.compose import composed
from bench.cli.help import help_text
from bench.errors import ConfigError
from tests.helpers import ROOT


@pytest.fixture
def conf(tmp_path, monkeypatch) -> Path:
    """A folder of choices beside the module that one of them names."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "plugged.py").write_text(
        "from dataclasses import dataclass\nfrom bench.types import Method\n\n\n@dataclass(frozen=True)\n"
        "class Plugged(Method):\n    n_bits: int\n"
    )
    (tmp_path / "conf" / "method" / "plugged.yaml").write_text("# mine\n_target_: plugged.Plugged\nn_bits: 64\n")
    yield tmp_path / "conf"
    sys.modules.pop("plugged", None)


def test_ones_own_choices_are_choices(conf):
    words = ["--config-dir", str(conf), "method=plugged", "method.n_bits=8"]
    assert usage.problem(words) == ""
    assert "did you mean 'plugged'" in usage.problem(["--config-dir", str(conf), "method=pluged"])
    assert "did you mean 'n_bits'" in usage.problem([f"--config-dir={conf}", "method=plugged", "method.nbits=8"])
    assert usage.problem(["-cd", str(conf), "-m", "method=glob(plug*)"]) == ""
    assert "unknown method 'plugged'" in usage.problem(["method=plugged"])
    assert "  plugged            mine" in help_text(["--help", "method", "--config-dir", str(conf)]).splitlines()
    assert help_text(["method=plugged", "-cd", str(conf)]).endswith("n_bits: 64")


def test_modules_beside_the_folder_are_found(conf, monkeypatch):
    words = ["--config-dir", str(conf), "method=plugged"]
    node = composed(words).method
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(conf.parent)])
    with pytest.raises(ConfigError, match=r"plugged\.py goes beside the folder that --config-dir names"):
        spec.build(node, "method")
    composed(words)
    assert spec.build(node, "method").n_bits == 64
    assert sys.path[0] != str(conf.parent)  # what is installed comes first


@pytest.mark.parametrize(
    ("folder", "expected"), [("no", "no: no such folder"), ("", r"holds no folder method, attack, .*conf\?")]
)
def test_a_folder_that_holds_no_choices_is_one_line(conf, folder, expected):
    with pytest.raises(ConfigError, match=expected):
        usage.check(["--config-dir", str(conf.parent / folder), "method=plugged"])


def test_help_fits_a_screen_and_leads_on():
    lines = help_text().splitlines()
    assert len(lines) <= 42
    for text in (help_text(), help_text(["all"]), help_text([f"method={m}" for m in usage.options("method")])):
        assert max(map(len, text.splitlines())) <= 80
    assert {line.split("=")[0] for line in lines} >= set(usage.GROUPS)
    assert help_text(["model"]) in help_text(["all"])
    for word, hint in (("modell", "did you mean 'model'"), ("model=resnet81", "did you mean 'resnet18'")):
        with pytest.raises(ConfigError, match=hint):
            help_text([word])


def test_a_reader_who_has_seen_enough_ends_a_command_in_silence():
    read, write = os.pipe()
    os.close(read)
    code = "from bench.cli import usage; raise SystemExit(usage.answer(['--help'], lambda: 'x' * 200_000, print))"
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_plan_of_ones_own_choices(conf):
    words = ["--config-dir", str(conf), "method=plugged,uchida", "attack=none"]
    assert plan.jobs(words) == [
        ["--config-dir", str(conf), f"method={name}", "attack=none"] for name in ("plugged", "uchida")
    ]
    assert [composed(job).method._target_ for job in plan.jobs(words)] == ["plugged.Plugged", "methods.uchida.Uchida"]
