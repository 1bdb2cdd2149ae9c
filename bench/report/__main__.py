"""Rows of run files -> tables, figures and a page: `python -m bench.report [method=uchida] [attack.scope=all]`

Nothing is typed by hand or measured here. Units: BER in [0, 1], utility in its task's unit (accuracy: percent), damage
and fidelity in points of it.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from pathlib import Path

from bench.errors import UserError, choice, framed
from bench.progress import console
from bench.report import threads
from bench.report.content import assemble
from bench.report.paper import latex
from bench.report.tables import csv, markdown, show
from bench.store import claims as verdicts
from bench.store.files import write_text
from bench.store.runs import FILTERS, known_option, read_runs, selected


def report(args: argparse.Namespace) -> bool:
    """Write and print everything; False when a control failed. Raises UserError for what the user can mend."""
    from bench.report.figures import static  # and matplotlib and plotly: a second that an error need not wait for
    from bench.report.figures.sweeps import sweeps
    from bench.report.page.page import page

    for name in (formats := args.formats.split(",")):
        choice("--formats", name, static.FORMATS)
    choice("--width", args.width, static.FORMS)
    folders = [Path(folder) for folder in args.runs or [Path(args.results) / "runs"]]
    if args.compact:
        if args.filters:
            raise UserError(f"--compact gathers all runs: leave {args.filters[0]} out", 2)
        from bench.store.compact import compact

        for folder in folders:
            print(compact(folder))
        return True
    odd: list[str] = []
    runs = selected([run for folder in folders for run in read_runs(folder, odd)], args.filters)
    if args.x:
        known_option(runs, args.x, f"--x {args.x}")
    columns = [pattern.strip() for pattern in args.columns.split(",")] if args.columns else []
    content = assemble(runs, args.x, columns)
    if args.x:
        _ = [*sweeps(content)]  # before anything is written
    claims, out = verdicts.read(Path(args.results) / "claims.json"), Path(args.out or args.results)
    texts = {f"{name}.csv": csv(frame) for name, frame in content.frames.items()}
    width = "column" if args.width == "column" else "text"
    for name, part in content.parts.items():
        texts |= {f"{name}.md": markdown(*part), f"{name}.tex": latex(*part, name, width)}
    try:
        for name, text in texts.items():
            write_text(out / "tables" / name, text)
        write_text(out / "report.html", page(content, folders, claims, len(odd)))
        figures = static.draw(content, out / "figures", formats, args.width)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    shown = console()
    for tables, legend in content.parts.values():
        for table in tables:
            show(table, shown)
        shown.print(f"{legend}\n")
    if odd:
        more = f"; and {len(odd) - 1:,} more" if len(odd) > 1 else ""
        print(f"warning: left out: {odd[0]}{more}", file=sys.stderr)
    if said := threads.mixed(content.runs, content.rows):
        print(f"warning: {said}", file=sys.stderr)
    if alarm := "INVALID" in content.unsound.values():
        print("warning: INVALID: an unmarked host verifies under its owner's key, or random keys do", file=sys.stderr)
    beside = f"{len(texts)} tables in tables/, {len(figures)} figures in figures/ beside it"
    shown.print(f"{_short(out / 'report.html')}\n  {beside}", soft_wrap=True)
    return not alarm


def _short(path: Path) -> str:
    return min(str(path), os.path.relpath(path), key=len)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m bench.report", description="Tables and figures of all runs.")
    home = os.path.expanduser  # no shell does that after a =
    parser.add_argument(
        "filters", nargs="*", metavar="key=value", help=f"{', '.join(FILTERS)}, any option (method.n_bits): a,b,..."
    )
    parser.add_argument("--results", default="results", type=home, help="folder of the results (default: %(default)s)")
    parser.add_argument(
        "--runs", action="append", metavar="DIR", type=home, help="folder of run files, repeatable (RESULTS/runs)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=home, help="where report.html, tables/ and figures/ go (default: RESULTS)"
    )
    parser.add_argument("--compact", action="store_true", help="gather all run files into one parquet, draw nothing")
    parser.add_argument("--formats", default="png,svg", help="png, svg, pdf (default: %(default)s)")
    parser.add_argument(
        "--width", default="screen", help="for papers: column, text (figures, LaTeX tables; default: %(default)s)"
    )
    parser.add_argument("--columns", help="of tables, by name: 'prune*,BER' (default: all)")
    parser.add_argument("--x", metavar="OPTION", help="figures against an option: --x method.n_bits")
    atexit.register(gc.freeze)  # as in bench.cli.usage: of many runs there are millions of objects
    return framed(lambda: 0 if report(parser.parse_intermixed_args(argv)) else 1)


if __name__ == "__main__":
    sys.exit(main())
