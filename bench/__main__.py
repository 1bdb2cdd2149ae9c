"""`python -m bench`: help and configuration errors in a moment, everything else through Hydra."""

from __future__ import annotations

import sys

from bench.cli import usage


def run(argv: list[str]) -> None:
    """The jobs of a command line. Raises ConfigError for one that cannot be; Hydra exits where a job failed."""
    usage.check(argv)
    from bench.cli.main import main as jobs

    # Hydra's parser takes all overrides in one piece: a flag between two of them would end it.
    sys.argv[1:] = sorted(argv, key=lambda word: word not in ("-m", "--multirun"))
    jobs()


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], usage.help_text, run))
