"""How the code is laid out: one-way arrows, short modules, plug-ins of two files; and Markdown that leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bench.cli import usage
from bench.cli.help import help_text
from tests.contract import house, markdown
from tests.helpers import ROOT

README = 180  # lines


def documents() -> list[Path]:
    """Every Markdown file of the repository, those not yet added included."""
    words = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in sorted(set(done.stdout.splitlines())) if (ROOT / name).is_file()]


def listed(complaints: list[str]) -> None:
    """Fails with every complaint, a line each."""
    assert not complaints, "\n".join(["", *complaints])


# The house itself


def test_no_circle_of_imports():
    listed(house.circles(house.imports(ROOT)))


def test_arrows_go_one_way():
    listed(house.against(house.imports(ROOT)))


def test_the_top_of_bench_is_what_it_says():
    listed(house.names(ROOT))


def test_a_plugin_is_a_module_and_a_configuration():
    listed(house.plugins(ROOT))


def test_modules_are_short():
    listed(house.long(ROOT))


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README


def test_links_lead_somewhere():
    listed([said for path in documents() for said in markdown.broken(path, ROOT)])


def test_commands_in_documents_compose():
    said = []
    problem = cache(lambda *words: usage.problem([*words]))  # many stand in several documents
    for path in documents():
        for module, words, line in markdown.commands(path.read_text(encoding="utf-8")):
            place = f"{path.relative_to(ROOT)}:{line}: python -m {module} {' '.join(words)}"
            if module == "bench" and "--config-dir" in words:
                continue  # a reader's own folder: tests/contract/test_extending.py makes it and follows
            if module == "bench" and "--help" in words:
                help_text(words)
            elif module == "bench":
                wrong = problem(*markdown.concrete(words, usage.GROUPS))
                if wrong and "is not installed" not in wrong:  # an extra's launcher
                    said.append(f"{place}: {wrong}")
            elif not markdown.runnable(module, ROOT):
                said.append(f"{place}: no such module")
    listed(said)


@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("import bench", {"torch", "hydra"}),
        (
            "import runpy; sys.argv[1:] = ['--help']; runpy.run_module('bench', run_name='__main__')",
            {"torch", "pandas"},
        ),
    ],
)
def test_what_starts_in_a_moment_imports_nothing_slow(code, never):
    probe = f"import atexit, sys; atexit.register(lambda: print('slow:', *({never!r} & sys.modules.keys()))); {code}"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "slow:"


# The checks themselves, on trees that break one rule each

SOUND = {
    "bench/__init__.py": "",
    "bench/errors.py": "import os",
    "bench/spec.py": "from bench.errors import ConfigError",
    "bench/store/__init__.py": "",
    "bench/store/files.py": "from bench import spec\nfrom . import runs",
    "bench/store/runs.py": "def f():\n    from ..errors import near",
    "methods/uchida.py": "from methods import _barrier\nfrom bench.store.files import x",
    "methods/_barrier.py": "import bench.spec",
    "attacks/prune.py": "from bench import spec, missing",
    "hydra_plugins/watermark_bench.py": "from bench.store import files",
    "conf/method/uchida.yaml": "",
    "conf/attack/prune.yaml": "",
}


def tree(root: Path, changes: dict[str, str | None]) -> Path:
    """SOUND with files changed and added, or left out where there is no text."""
    for name, text in {**SOUND, **changes}.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def test_imports_are_those_of_modules_wherever_they_stand(tmp_path):
    found = {(one.module, one.target) for one in house.imports(tree(tmp_path, {}))}
    assert found == {
        ("bench.spec", "bench.errors"),
        ("bench.store.files", "bench.spec"),
        ("bench.store.files", "bench.store.runs"),
        ("bench.store.runs", "bench.errors"),
        ("methods.uchida", "methods._barrier"),
        ("methods.uchida", "bench.store.files"),
        ("methods._barrier", "bench.spec"),
        ("attacks.prune", "bench.spec"),
        ("attacks.prune", "bench"),
        ("hydra_plugins.watermark_bench", "bench.store.files"),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        (
            {"bench/errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bench import spec"},
            ["bench.errors -> bench.spec -> bench.errors (bench/errors.py:3, bench/spec.py:1)"],
        ),
        (
            {"bench/store/runs.py": "def f():\n    from bench.store.files import x"},
            [
                "bench.store.files -> bench.store.runs -> bench.store.files "
                "(bench/store/files.py:2, bench/store/runs.py:2)"
            ],
        ),
        (
            {
                "bench/__init__.py": "def f():\n    from bench import run",
                "bench/run.py": "import bench.stages",
                "bench/stages.py": "from bench import __version__",
            },
            ["bench -> bench.run -> bench.stages -> bench (bench/__init__.py:2, bench/run.py:1, bench/stages.py:1)"],
        ),
    ],
)
def test_circles_are_told(tmp_path, changes, said):
    assert house.circles(house.imports(tree(tmp_path, changes))) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"bench/run.py": "import bench"}, []),
        ({"bench/errors.py": "import bench.spec"},
            ["bench/errors.py:1: bench.errors imports bench.spec: spec is not below errors"]),
        (
            {"bench/types.py": "from bench import spec"},
            ["bench/types.py:1: bench.types imports bench.spec: spec is not below types"],
        ),
        (
            {"bench/claims/__init__.py": "", "bench/claims/tables.py": "from methods.uchida import Uchida"},
            ["bench/claims/tables.py:1: bench.claims.tables imports methods.uchida: bench imports no plug-in"],
        ),
        (
            {"attacks/prune.py": "import methods._barrier"},
            ["attacks/prune.py:1: attacks.prune imports methods._barrier: methods is not below attacks"],
        ),
        (
            {"methods/none.py": "from methods.uchida import Uchida"},
            [
                "methods/none.py:1: methods.none imports methods.uchida: "
                "of its own folder a plug-in imports helpers that begin with an underscore"
            ],
        ),
        (
            {"methods/none.py": "def f():\n    from bench import run", "bench/run.py": ""},
            ["methods/none.py:2: methods.none imports bench.run: run is not below methods"],
        ),
        (
            {"bench/odd.py": "from bench import spec"},
            ["bench/odd.py:1: bench.odd imports bench.spec: odd is at no level"],
        ),
        (
            {"bench/run.py": "import bench", "bench/__init__.py": "from bench import errors"},
            ["attacks/prune.py:1: attacks.prune imports bench: bench is not below attacks",
             "bench/run.py:1: bench.run imports bench: bench is not below run"],
        ),
    ],
)  # fmt: skip
def test_arrows_that_go_up_are_told(tmp_path, changes, said):
    assert sorted(house.against(house.imports(tree(tmp_path, changes)))) == said


def test_names_at_the_top_of_bench_are_told(tmp_path):
    files = {f"bench/{name}.py": "" for name in house.MODULES}
    files |= {f"bench/{name}/__init__.py": "" for name in house.PACKAGES}
    assert (len(house.MODULES), len(house.PACKAGES)) == (22, 12)
    assert set(house.LEVEL) == house.MODULES | house.PACKAGES | {*house.PLUGINS, "hydra_plugins"}
    assert house.names(tree(tmp_path / "whole", {**files})) == []
    odd = {**files, "bench/run.py": None, "bench/store/__init__.py": None, "bench/store/files.py": None}
    odd |= {"bench/store/runs.py": None, "bench/plots.py": "", "bench/figures/static.py": ""}
    assert house.names(tree(tmp_path / "odd", odd)) == [
        "bench/plots.py: not a module of the house",
        "bench/figures/: not a package of the house",
        "bench/run.py is missing",
        "bench/store/ is missing",
    ]


def test_plugins_without_a_configuration_are_told(tmp_path):
    assert house.plugins(tree(tmp_path, {})) == []
    more = {"methods/stages.py": "", "conf/attack/cut.yaml": "", "methods/__init__.py": "", "attacks/_outputs.py": ""}
    assert house.plugins(tree(tmp_path, more)) == [
        "methods/stages.py has no conf/method/stages.yaml",
        "conf/attack/cut.yaml has no attacks/cut.py",
    ]


def test_long_modules_are_told(tmp_path):
    more = {"tests/a/test_a.py": "\n" * 400, "benchmarks/b.py": "\n" * 401, "conf/c.py": "\n" * 500}
    assert house.long(tree(tmp_path, more)) == ["benchmarks/b.py: 401 lines"]


PAGE = """\
# The `bench` command: it's here
[up](../top.md) [web](https://x.org/a#b) [own](#the-bench-command-its-here) `[no](link)`

    [no](link)

## Twice
## Twice
![picture](a%20b.png "title") [twice](#twice-1)
[ref]: more/
<a id="mark"></a><img src="a b.png">
[![both](a%20b.png)](#mark) \\[.2, .3](*)
"""


def test_broken_links_are_told(tmp_path):
    for name in ("docs/a b.png", "docs/more/x", "top.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# Top\n```\n# no heading\n```\n")
    page = tmp_path / "docs" / "page.md"
    page.write_text(PAGE)
    assert markdown.broken(page, tmp_path) == []
    page.write_text(
        PAGE + "[![a](lost.png)](gone.md)\n[b](#thrice) [c](../top.md#top)\n[d](../top.md#no-heading) [e](../../)\n"
    )
    assert markdown.broken(page, tmp_path) == [
        "docs/page.md:12: gone.md: no such file",
        "docs/page.md:12: lost.png: no such file",
        "docs/page.md:13: #thrice: no such heading",
        "docs/page.md:14: ../top.md#no-heading: no such heading",
        "docs/page.md:14: ../../: no such file",
    ]


LINES = """\
Say `python -m bench
method=NAME seed=0 && python -m bench.report`, or

    .venv/bin/python -m bench -m method=a,b \\
        "attack=c"  # a comment: python -m bench not=this

```bash
cd x; PYTHONPATH=. python3 -m bench.layers model=vit > out
python -m benchmarks
```

python -m bench in prose
"""


def test_commands_are_found_as_a_shell_reads_them():
    assert markdown.commands(LINES) == [
        ("bench", ["-m", "method=a,b", "attack=c"], 4),
        ("bench.layers", ["model=vit"], 8),
        ("bench", ["method=NAME", "seed=0"], 1),
        ("bench.report", [], 1),
    ]


def test_placeholders_are_left_out_and_mistakes_are_not(tmp_path):
    words = ["method=NAME", "attack=...", "data.path=DIR", "model@attack.students.NAME=MODEL", "experiment=claims/NAME"]
    assert markdown.concrete([*words, "...", "WORDS", "seed=0"], usage.GROUPS) == ["data.path=DIR", "seed=0"]
    assert usage.problem(markdown.concrete(["data=imagefolder", *words], usage.GROUPS)) == ""
    assert "unknown method" in usage.problem(markdown.concrete(["method=uchda"], usage.GROUPS))
    made = tree(tmp_path, {"bench/report/__main__.py": "__name__ == '__main__'", "bench/layers.py": "'__main__'"})
    assert [markdown.runnable(f"bench.{name}", made) for name in ("report", "layers", "spec", "gone")] == [1, 1, 0, 0]
