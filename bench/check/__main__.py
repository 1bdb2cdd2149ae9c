"""`python -m bench.check method=NAME | attack=NAME ...`: a plug-in, checked

  python -m bench.check method=mine --config-dir conf        a method
  python -m bench.check attack=mine --config-dir conf        an attack, on uchida
  python -m bench.check method=mine attack=prune,mine        with these attacks
  python -m bench.check method=mine attack=all               with every attack

Asks what tests/contract asks of every method and attack in the repository, a
line for each property: ok, FAILED with the reason, or n/a. On digits and a
network of 0.4 M weights with few bits and strengths, so that a method takes a
minute or two; what is said on the command line wins (model=, train.epochs=,
method.n_bits=, task=). Everything is made in a folder that is then removed,
unless results_dir= names one. Exit status 1 when a property does not hold;
debug=true shows where.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.check import small
from bench.cli import terminal, usage
from bench.cli.compose import composed, placed
from bench.errors import ConfigError, UserError
from bench.progress import Progress, silent, spoken

if TYPE_CHECKING:
    from bench.experiment import Experiment

PARTNER = "uchida"  # whom an attack is tried on where nobody is named
USUAL = ("prune", "finetune", "overwrite", "forge")  # what a method is tried against where nothing is named


def check(argv: list[str]) -> bool:
    """Every property of what the words name; False where one does not hold. Raises UserError."""
    folders, words = placed(argv)
    named = {group: _named(group, words) for group in ("method", "attack")}
    if not any(named.values()):
        raise ConfigError("name a plug-in: method=NAME or attack=NAME")
    if len(named["method"]) > 1:
        raise ConfigError("method names one: check them one after another")
    rest = [word for word in words if word.partition("=")[0] not in named]
    with contextlib.ExitStack() as stack:
        if not any(word.startswith("results_dir=") for word in rest):
            rest.append(f"results_dir={stack.enter_context(tempfile.TemporaryDirectory(prefix='bench-check-'))}")
        where = [flag for folder in folders for flag in ("--config-dir", str(folder))]

        def made(method: str, attack: str) -> list[str]:
            names = [f"method={method}", f"attack={attack}"]
            usage.check([*where, *names, *rest])
            cfg = composed([*names, *_groups(rest)], folders)
            chosen = [*names, *small.base(rest), *small.small(cfg), *rest]
            usage.check([*where, *chosen])
            return chosen

        attacks = named["attack"] or USUAL
        attacks = usage.options("attack", folders) if attacks == ["all"] else attacks
        method = (named["method"] or [PARTNER])[0]
        first = made(method, "none")
        chosen = {attack: made(method, attack) for attack in attacks}
        _, progress = stack.enter_context(spoken(terminal.say))  # nothing stays silent for long
        return _told(_properties(named, first, chosen, folders, progress), "debug=true" in rest)


def _named(group: str, words: list[str]) -> list[str]:
    """The choices of a group that the words name."""
    values = [word.partition("=")[2] for word in words if word.partition("=")[0] == group]
    return [name for value in values for name in value.split(",") if name]


def _groups(words: list[str]) -> list[str]:
    """Those that choose, without which options of what is chosen are unknown."""
    return [word for word in words if word.partition("=")[0] in usage.GROUPS]


Property = tuple[str, Callable[[], str]]


def _properties(
    named: dict[str, list[str]],
    first: list[str],
    chosen: dict[str, list[str]],
    folders: list[Path],
    progress: Progress,
) -> Iterator[Property | str]:
    """Titles, and (property, what asks for it), in the order in which they are asked."""
    from bench import run, stages
    from bench.check import properties as ask

    def prepared(words: list[str]) -> Experiment:
        return run.prepare(composed(words, folders), silent, progress)

    x = prepared(first)
    given = f"{x.model.title}, {x.data.name}"
    if named["method"]:
        yield f"method {x.method_name} ({type(x.method).__module__}.{type(x.method).__name__}), on {given}"
        if x.method.marks:
            victim: list = []
            yield "a mark is embedded", lambda: _embedded(x, victim)
            if not victim:
                return  # nothing else can be asked
            for asked in (
                ask.every_bit_is_embedded,
                ask.the_mark_costs_little,
                ask.keys_are_drawn_from_rng_alone,
                ask.extraction_repeats_and_leaves_the_suspect,
                ask.hosts_are_not_detected,
                ask.random_keys_match_by_chance,
                ask.trials_are_what_keygen_and_extract_give,
                ask.embedding_repeats_on_the_owners_data,
            ):
                yield _words(asked.__name__), lambda asked=asked: asked(*victim)
    for attack, words in chosen.items():
        x = prepared(words)
        yield f"attack {attack} ({type(x.attack).__module__}.{type(x.attack).__name__}), on {x.method_name}, {given}"
        yield (
            "runs or says why not, and repeats",
            lambda words=words: ask.pairs_run_or_say_why_not(composed(words, folders), progress),
        )
        if x.method.marks:
            yield (
                _words(ask.victims_stay_bit_identical.__name__),
                lambda x=x: ask.victims_stay_bit_identical(x, *stages.opened(x, stages.mark(x))),
            )
        yield (
            _words(ask.attackers_are_handed_no_more_than_they_state.__name__),
            lambda x=x: ask.attackers_are_handed_no_more_than_they_state(x),
        )


def _embedded(x: Experiment, victim: list) -> str:
    from bench import stages

    entry = stages.mark(x)
    victim += [x, *stages.opened(x, entry)]
    return f"{entry['n_bits']} bits in {entry['seconds']:.3g} s"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _told(asked: Iterator[Property | str], debug: bool) -> bool:
    """Ask, a line each on stdout; whether all holds."""
    count = failed = 0
    for item in asked:
        if isinstance(item, str):
            print(item, flush=True)
            continue
        name, ask = item
        try:
            said, word = ask(), "ok"
        except UserError as error:
            said, word = str(error), "FAILED"
        except Exception as error:  # of a plug-in: whatever it raises is its property not to
            if debug:
                traceback.print_exc(file=sys.stderr)
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            said, word = f"{kind}{' '.join(str(error).split())}", "FAILED"
        word = "n/a" if word == "ok" and said.startswith(("skipped", "not reached")) else word
        count, failed = count + 1, failed + (word == "FAILED")
        print(f"  {word:6}  {name}: {said}", flush=True)
    print(f"{count - failed} of {count} hold")
    return not failed


def main(argv: list[str]) -> int:
    """The command line; returns the exit code."""
    return usage.answer(argv, lambda: __doc__, check, kept="nothing is kept, unless results_dir= says where")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
