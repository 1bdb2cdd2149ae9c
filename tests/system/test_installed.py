"""The package as pip installs it, without this folder: a wheel holds all that the commands need."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers import ROOT, command

TINY = "model=timm model.name=test_resnet train.epochs=1 data.train_limit=200 data.test_limit=60 verify.keys=10"
GENERATED = (".*", "results", "build", "*.egg-info", "__pycache__")


@pytest.fixture
def installed(tmp_path_factory) -> Path:
    """A folder with the packages of the wheel that pip builds of this tree, without network."""
    base = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT, base / "source", ignore=shutil.ignore_patterns(*GENERATED))
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    done = command("wheel", *offline, "--no-build-isolation", "-w", "wheels", "./source", cwd=base, module="pip")
    assert done.returncode == 0, done.stderr
    (wheel,) = (base / "wheels").iterdir()
    done = command("install", *offline, "--target", "site", str(wheel), cwd=base, module="pip")
    assert done.returncode == 0, done.stderr
    (listed,) = (base / "site").glob("*.dist-info/top_level.txt")
    assert listed.read_text(encoding="utf-8").split() == ["attacks", "bench", "hydra_plugins", "methods"]
    return base / "site"


@pytest.mark.slow
@pytest.mark.quick
def test_the_commands_work_from_an_empty_folder(installed, tmp_path):
    def said(*words: str, module: str = "bench") -> str:
        done = command(*words, cwd=tmp_path, module=module, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"Origin: {installed}" in said("--details", "bench", module="inspect")
    assert "neuralmark" in said("--help")
    said("method=none", "attack=none", *TINY.split())
    assert len([*(tmp_path / "results" / "runs").rglob("*.json")]) == 1
    said("--formats", "svg", module="bench.report")
    assert "</style>" in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
