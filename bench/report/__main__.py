"""Rows of run files -> tables, figures and a page: `python -m bench.report [method=uchida,neuralmark] [attack=prune]`

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
from bench.report.tables import csv, latex, markdown, show
from bench.store import claims as verdicts
from bench.store.files import write_text
from bench.store.runs import FILTERS, read_runs, selected


def report(args: argparse.Namespace) -> bool:
    """Write and print everything; False when a control failed. Raises UserError for what the user can mend."""
    from bench.report.figures import static  # and matplotlib and plotly: a second that an error need not wait for
    from bench.report.page.page import page

    for name in (formats := args.formats.split(",")):
        choice("--formats", name, static.FORMATS)
    runs = Path(args.runs or Path(args.results) / "runs")
    if args.compact:
        if args.filters:
            raise UserError(f"--compact gathers all runs: leave {args.filters[0]} out", 2)
        from bench.store.compact import compact

        print(compact(runs))
        return True
    odd: list[str] = []
    content = assemble(selected(read_runs(runs, odd), args.filters))
    claims, out = verdicts.read(Path(args.results) / "claims.json"), Path(args.out or args.results)
    texts = {f"{name}.csv": csv(frame) for name, frame in content.frames.items()}
    for name, part in content.parts.items():
        texts |= {f"{name}.md": markdown(*part), f"{name}.tex": latex(*part)}
    try:
        for name, text in texts.items():
            write_text(out / "tables" / name, text)
        write_text(out / "report.html", page(content, runs, claims, len(odd)))
        figures = static.draw(content, out / "figures", formats)
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
    for path in [*(out / "tables" / name for name in texts), out / "report.html", *figures]:
        shown.print(min(str(path), os.path.relpath(path), key=len), soft_wrap=True)
    return not alarm


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m bench.report", description="Tables and figures of all runs.")
    parser.add_argument("filters", nargs="*", metavar="key=value", help=f"{', '.join(FILTERS)}: a,b,...")
    home = os.path.expanduser  # no shell does that after a =
    parser.add_argument("--results", default="results", type=home, help="folder of the results (default: %(default)s)")
    parser.add_argument("--runs", type=home, help="folder of the run files (default: RESULTS/runs)")
    parser.add_argument("--out", type=home, help="where report.html, tables/ and figures/ go (default: RESULTS)")
    parser.add_argument("--compact", action="store_true", help="gather all run files into one parquet, draw nothing")
    parser.add_argument("--formats", default="png,svg", help="png, svg, pdf (default: %(default)s)")
    atexit.register(gc.freeze)  # as in bench.cli.usage: of many runs there are millions of objects
    return framed(lambda: 0 if report(parser.parse_intermixed_args(argv)) else 1)


if __name__ == "__main__":
    sys.exit(main())
