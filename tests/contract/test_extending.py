"""docs/extending.md followed to the letter: each recipe works from an empty folder outside the repository, and a run is
told by what its files and models are, not by where they lie."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_model

from bench import run, spec
from tests.contract import markdown
from tests.helpers import ROOT, config

GUIDE = ROOT / "docs" / "extending.md"
RECIPES = ("A method", "An attack", "A task", "A model")
LATER = (pytest.mark.slow, pytest.mark.quick)  # what the default run leaves to CI
SMALL = ("model=timm", "model.name=test_resnet", "data.train_limit=200", "data.test_limit=60", "device=cpu")


def recipe(text: str, heading: str) -> tuple[dict[str, str], list[markdown.Code]]:
    """Files by name and bash blocks below a `## heading`. A file is a block with the info `python title=NAME` or
    `yaml title=NAME`."""
    sections = re.split(r"^## (.*)$", text, flags=re.M)
    below = dict(zip(sections[1::2], sections[2::2], strict=True))[heading]
    above = text[: text.index(f"\n## {heading}\n") + 1].count("\n")
    found = [code._replace(line=code.line + above) for code in markdown.blocks(below)[1]]
    titles = {m[1]: code.text for code in found if (m := re.fullmatch(r"(?:python|yaml) title=(\S+)", code.info))}
    return titles, [code for code in found if code.info == "bash"]


def write(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def follow(script: markdown.Code, folder: Path) -> str:
    """Run a block in a shell whose `python` is this one and finds this repository last, as if it were installed."""
    bin_ = folder.with_name(f"{folder.name}-bin")
    bin_.mkdir(exist_ok=True)
    python = f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:"{shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} "$@"\n'
    (bin_ / "python").write_text(python)
    (bin_ / "python").chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": ""}
    words = ["bash", "-euo", "pipefail", "-c", script.text]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"line {script.line}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


SAMPLE = """
# A guide

## One

```python title=mine.py
VALUE = 5
```

```yaml title=conf/method/mine.yaml
# mine
n_bits: 64
```

```bash
PYTHONPATH=. python -c "import mine, bench; print(mine.VALUE, \\
    bench.__name__)"
```

```text
python no.py
```

## Two

```bash
ls conf
```
"""


def test_recipes_are_read_and_followed(tmp_path):
    files, (script,) = recipe(SAMPLE, "One")
    assert files == {"mine.py": "VALUE = 5", "conf/method/mine.yaml": "# mine\nn_bits: 64"}
    write(files, tmp_path)
    assert follow(script, tmp_path) == "5 bench\n"
    files, (script,) = recipe(SAMPLE, "Two")
    assert (files, SAMPLE.split("\n")[script.line - 1]) == ({}, "ls conf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match=rf"line {script.line}: exit status [12]"):
        follow(script, tmp_path / "empty")


@pytest.mark.parametrize("heading", RECIPES)
def test_what_recipes_write_can_be_read(heading):
    """Code that parses, imports that exist, yamls whose first comment is their line of help, and a command."""
    files, scripts = recipe(GUIDE.read_text(encoding="utf-8"), heading)
    assert files
    assert scripts
    for name, text in files.items():
        if name.endswith(".yaml"):
            assert text.startswith("# "), name
            yaml.safe_load(text)
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("bench", "methods", "attacks"):
                for alias in node.names:
                    if not hasattr(importlib.import_module(node.module), alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("heading", [pytest.param(name, marks=LATER) for name in RECIPES])
def test_recipes_work_from_an_empty_folder(tmp_path, heading):
    files, scripts = recipe(GUIDE.read_text(encoding="utf-8"), heading)
    write(files, tmp_path)
    for script in scripts:
        follow(script, tmp_path)


# Hashes


@pytest.fixture
def ask(tmp_path, monkeypatch) -> Callable[..., run.Experiment]:
    """An experiment of command-line words, with what a recipe wrote into the folder in reach."""

    def prepared(*words: str) -> run.Experiment:
        conf = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
        return run.prepare(config(conf, *SMALL, f"results_dir={tmp_path}", *words))

    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield prepared
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_id(x: run.Experiment) -> str:
    return x.run_id


def follows_content(ask: Callable, words: tuple[str, ...], option: str, one: Path, other: Path) -> None:
    """The run's name is the same wherever a file lies, and another with other content or without the file."""
    moved = one.with_name(f"moved-{one.name}")
    moved.write_bytes(one.read_bytes())
    assert one.read_bytes() != other.read_bytes()
    first = run_id(ask(*words, f"{option}={one}"))
    assert run_id(ask(*words, f"{option}={moved}")) == first
    assert run_id(ask(*words, f"{option}={other}")) != first
    assert run_id(ask(*words)) != first
    one.write_bytes(other.read_bytes())
    assert run_id(ask(*words, f"{option}={one}")) == run_id(ask(*words, f"{option}={other}")) != first


def follows_model(ask: Callable, words: tuple[str, ...], option: str) -> None:
    """The run's name changes with the options of a model within a choice, and follows its checkpoint's content."""
    x = ask(*words)
    files = [Path(x.cfg.results_dir) / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, file in enumerate(files):
        save_model(x.task.build(spec.build(OmegaConf.select(x.cfg, option), option), seed), str(file))
    assert run_id(ask(*words)) == run_id(x)
    assert run_id(ask(*words, f"{option}.stem=small")) != run_id(x)
    follows_content(ask, words, f"{option}.checkpoint", *files)


@pytest.mark.slow
@pytest.mark.quick
def test_a_method_is_told_by_its_file_and_by_its_model(ask, tmp_path):
    write(recipe(GUIDE.read_text(encoding="utf-8"), "A method")[0], tmp_path)
    words = ("method=mymethod", "attack=none")
    write({"one.txt": "mine", "other.txt": "yours"}, tmp_path)
    follows_content(ask, words, "method.statement", tmp_path / "one.txt", tmp_path / "other.txt")
    follows_model(ask, words, "method.teacher")
    assert run_id(ask(*words, "model@method.teacher=regnetx_002")) != run_id(ask(*words))


@pytest.mark.slow
@pytest.mark.quick
def test_an_attack_is_told_by_each_of_its_models(ask, tmp_path):
    write(recipe(GUIDE.read_text(encoding="utf-8"), "An attack")[0], tmp_path)
    words = ("method=uchida", "method.n_bits=64", "attack=myattack")
    follows_model(ask, words, "attack.students.small")
    assert run_id(ask(*words, "+model@attack.students.third=convnext_atto")) != run_id(ask(*words))
