"""Static pages from results alone: `python -m bench.site` -> site/index.html

No server and no network: pages open from disk. The first is a leaderboard; every method and attack has a page of what
it is, its rows and its figures, every folder of runs the whole report.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from bench.errors import UserError, framed
from bench.store.files import write_text
from bench.store.runs import listed

LIST = "assets/files.txt"  # of what a site consists: what an older one had besides goes
FIRST = ("reference",)  # folders of results in whose order the leaderboards stand


def folders(results: Path) -> list[Path]:
    """Folders right below `results` that hold run files and a README: what was kept for others to read."""
    found = [path for path in sorted(results.iterdir()) if (path / "README.md").is_file() and any(listed(path))]
    return sorted(found, key=lambda path: FIRST.index(path.name) if path.name in FIRST else len(FIRST))


def described(readme: Path) -> tuple[str, str]:
    """Title and first paragraph of a README, as plain text."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip() and not part.startswith(("#", "    ", "|"))]
    first = " ".join(parts[0].split()) if parts else ""
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", first).replace("`", "")
    return (title[1] if title else readme.parent.name), plain.rstrip(":.") + "." * bool(plain)


def build(places: list[Path], claims: Path, out: Path) -> int:
    """Writes the site; returns how many pages. Raises UserError for no runs and for a folder of something else."""
    from bench.report.content import assemble
    from bench.report.page.markup import libraries
    from bench.report.page.page import page
    from bench.site import pages
    from bench.store import claims as verdicts
    from bench.store.runs import read_runs

    known = out / LIST
    if out.exists() and not known.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and is no site: name another with --out", 2)
    results = []
    for place in places:
        title, about = described(place / "README.md")
        name = re.sub(r"[^a-z0-9_.-]+", "-", place.resolve().name.lower())
        results.append(pages.Results(name, place, title, about, assemble(read_runs(place))))
    files = {f"assets/{name}": text for name, text in libraries().items()}
    files["index.html"] = pages.index(results)
    for side, folder in pages.SIDES.items():
        for name in pages.names(results, side):
            files[f"{folder}/{name}.html"] = pages.about(side, name, results)
    found = verdicts.read(claims)
    for one in results:
        files[f"results/{one.name}.html"] = page(one.content, [one.folder], found, assets="../assets")
    files["add.html"] = pages.add()
    files[LIST] = "".join(f"{name}\n" for name in sorted(files))
    try:
        before = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
        for name, text in files.items():
            write_text(out / name, text)
        for name in before:
            if name not in files and ".." not in Path(name).parts and not Path(name).is_absolute():
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    return sum(name.endswith(".html") for name in files)


def checked(places: list[Path], again: bool, options: list[str]) -> bool:
    """Says of every run file below `places` what is wrong with it; whether none is."""
    from bench.site import check

    files = [path for place in places for path in ([place] if place.is_file() else map(Path, listed(place)[0]))]
    if not files:
        raise UserError(f"no run files at {', '.join(map(str, places))}", 2)
    good = 0
    for path in files:
        said = check.complaints(path)
        if again and not said:
            with tempfile.TemporaryDirectory() as folder:
                said = check.again(path, Path(folder), options)
        for line in said:
            print(f"{path}: {line}")
        good += not said
    what = "complete, and the same when made again" if again else "complete"
    print(f"{good:,} of {len(files):,} run files are {what}")
    return good == len(files)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m bench.site", description="Static pages from results alone.")
    parser.add_argument("options", nargs="*", metavar="key=value", help="with --again: data.path=..., for example")
    parser.add_argument("--results", default="results", help="folder of the results (default: %(default)s)")
    parser.add_argument("--runs", nargs="+", help="folders of run files (default: those of RESULTS with a README)")
    parser.add_argument("--out", default="site", help="where the pages go (default: %(default)s)")
    parser.add_argument("--check", nargs="+", metavar="PATH", help="say whether run files are complete; no pages")
    parser.add_argument("--again", action="store_true", help="with --check: make each again, and compare its rows")
    args = parser.parse_intermixed_args(argv)
    return framed(lambda: site(args))


def site(args: argparse.Namespace) -> int:
    """What a command line asks for; the exit code. Raises UserError for what the user can mend."""
    if args.check:
        return 0 if checked([Path(path) for path in args.check], args.again, args.options) else 1
    results = Path(args.results)
    if not args.runs and not results.is_dir():
        raise UserError(f"{results} is no folder: --results, or --runs")
    places = [Path(path) for path in args.runs] if args.runs else folders(results)
    if not places:
        raise UserError(f"no folder of run files with a README.md below {results}; name some with --runs")
    count = build(places, results / "claims" / "claims.json", Path(args.out))
    print(f"{count} pages: {Path(args.out) / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
