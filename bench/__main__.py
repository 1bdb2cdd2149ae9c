"""`python -m bench`: help and configuration errors in a moment, everything else through Hydra."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    from bench import usage

    if any(word in ("-h", "--help") for word in argv):
        print(usage.help_text())
        return 0
    if problem := usage.problem(argv):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from bench.cli import main as run

    # Hydra's parser takes all overrides in one piece: a flag between two of them would end it.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    try:
        run()
    except KeyboardInterrupt:
        print("interrupted: finished stages and runs are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
