"""`python -m bench`: help and configuration errors in a moment, everything else through Hydra."""

from __future__ import annotations

import os
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bench.cli import usage
from bench.cli.help import help_text
from bench.errors import ConfigError


def run(argv: list[str]) -> None:
    """The jobs of a command line. Raises ConfigError for one that cannot be; Hydra exits where a job failed."""
    usage.check(argv)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # to raise what it would print itself, as a traceback
    from bench.cli.main import main as jobs

    # Hydra's parser takes all overrides in one piece: a flag between two of them would end it.
    sys.argv[1:] = sorted(argv, key=lambda word: word not in ("-m", "--multirun"))
    try:
        jobs()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(usage.in_one_line(error)) from error


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: help_text(sys.argv[1:]), run))
