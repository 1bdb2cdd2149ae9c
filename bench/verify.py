"""`python -m bench.verify FILE --key KEY`: whether a key's mark is in a file of weights."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.errors import UserError

if TYPE_CHECKING:
    from bench.owner.commitment import Commitment
    from bench.owner.evidence import Evidence

VERIFIED, USABLE, UNUSABLE = 0, 3, 2
EPILOG = """\
FILE: .safetensors, whole, or its .index.json or folder; .pth, .pt, .bin, .ckpt
as torch.save writes them. Only tensors are read: what would run code is not.
With several keys, the one whose commitment has the earliest date is named.

  0  verified: p <= alpha, and every check of the method holds
  3  not verified
  2  unusable input: nothing is known

A method that reads what a network gives (trigger, deepsigns) takes the words
that make the network, as python -m bench does: model=NAME data=NAME.
Time-stamp: openssl ts -query -data commitment.json -sha256 -cert -out q.tsq
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.verify",
        usage="python -m bench.verify FILE --key KEY [...] [model=NAME data=NAME]",
        description="Whether a key's mark is in a file of weights.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=23, width=80),
        allow_abbrev=False,
    )
    made.add_argument("file", metavar="FILE", help="the suspect's weights")
    made.add_argument("words", nargs="*", metavar="model=NAME", help=argparse.SUPPRESS)
    made.add_argument("--key", action="append", required=True, help="the owner's key file; may be given again")
    made.add_argument("--reference", metavar="FILE", help="the marked network, to put channels back")
    made.add_argument("--alpha", type=float, default=1e-9, metavar="P", help="p of a detection (1e-9)")
    made.add_argument("--under", metavar="NAME", help="entry of a pickled dictionary to read")
    made.add_argument("--prefix", metavar="NAME.", help="what names of the network begin with")
    made.add_argument("--commitment", action="append", default=[], metavar="FILE", help="commitment.json of a key")
    made.add_argument("--timestamp", action="append", default=[], metavar="FILE", help="an RFC 3161 response to it")
    made.add_argument("--ca", action="append", default=[], metavar="PEM", help="authorities to be trusted")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(argv: list[str]) -> int:
    """The exit status: 0 verified, 3 not verified, 2 unusable input."""
    asked = parser().parse_intermixed_args(argv)
    try:
        told = found(asked)
    except UserError as error:
        if asked.json:
            print(json.dumps({"status": UNUSABLE, "verified": None, "error": str(error)}))
        print(f"error: {harmless(str(error))}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    status = VERIFIED if any(item["evidence"].detected for item in told) else USABLE
    said = first(told)
    if asked.json:
        claims = [as_json(item) for item in told]
        print(
            json.dumps({"status": status, "verified": status == VERIFIED, "earlier": said, "claims": claims}, indent=1)
        )
    else:
        for item in told:
            show(item)
        if said:
            print(said)
    return status


def found(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Of each key its file, evidence, commitment (or None) and what that covers."""
    from bench.owner import commitment, evidence, keyfile

    if odd := next((word for word in asked.words if "=" not in word), ""):
        raise UserError(f"{odd}: one file at a time, {asked.file} is the suspect", UNUSABLE)
    commitments = [commitment.read(place) for place in asked.commitment]
    stamped = [commitment.dated(made, asked.timestamp, asked.ca) for made in commitments]
    if asked.timestamp and not any(made.date for made in stamped):
        raise UserError("the time-stamp is of none of the commitments given (--commitment)", UNUSABLE)
    told = []
    for place in asked.key:
        owned = keyfile.read(place)
        if asked.words and owned.method.access == "weights":
            raise UserError(f"{asked.words[0]}: {place} is read from weights, which takes no network", UNUSABLE)
        mine = [made for made in stamped if made.key_sha256 == owned.sha256]
        covers = [commitment.checked(made, owned, asked.reference) for made in mine]
        suspect: Any = asked.file if owned.method.access == "weights" else network(asked, owned)
        # A reference belongs to one key: it is that whose digest it has.
        more = {"under": asked.under, "prefix": asked.prefix} if isinstance(suspect, str) else {}
        reference = asked.reference if len(asked.key) == 1 or _refers(asked.reference, owned) else None
        made = evidence.verify(suspect, owned, reference, alpha=asked.alpha, **more)
        told.append(
            {
                "key": place,
                "evidence": made,
                "commitment": mine[0] if mine else None,
                "covers": [line for lines in covers for line in lines],
            }
        )
    if lost := [made for made in stamped if all(made is not item["commitment"] for item in told)]:
        raise UserError(f"{lost[0].path}: commits to none of the keys given", UNUSABLE)
    return told


def _refers(reference: str | None, owned: Any) -> bool:
    from bench.owner import commitment

    return reference is not None and commitment.contents(owned, reference) == owned.digest


def network(asked: argparse.Namespace, owned: Any) -> Any:
    """The network that words make, with the suspect's weights: what a method asks that reads what it gives."""
    if not asked.words:
        return asked.file
    from bench import spec
    from bench.cli import usage
    from bench.cli.compose import composed
    from bench.experiment import prepare

    words = [*asked.words, f"method={spec.kind(owned.method)}", f'model.checkpoint="{asked.file}"', "attack=none"]
    usage.check(words)
    x = prepare(composed(words))
    return x.task.build(x.model, 0).eval()


def first(told: list[dict[str, Any]]) -> str:
    """Which of several claims that verify was committed first."""
    from bench.owner import commitment

    good = [(item["key"], item["commitment"]) for item in told if item["evidence"].detected]
    return commitment.earlier(good) if len(good) > 1 else ""


def show(item: dict[str, Any]) -> None:
    """Evidence of one key, on stdout."""
    made: Evidence = item["evidence"]
    dated: Commitment | None = item["commitment"]
    print(harmless(f"{'VERIFIED' if made.detected else 'NOT VERIFIED'}: {item['key']} in {made.suspect}"))
    print(f"  bits    {made.matches} of {made.n_bits}, BER {made.ber:.4f}, read {made.how}; method {made.method}")
    from bench.owner.evidence import number

    print(f"  p       {number(made.log10_p)}, alpha {made.alpha:g}")
    for name, holds in made.checks.items():
        told("  check   ", f"{'holds' if holds else 'FAILS'}: {name}")
    for line in (*made.said, *item["covers"]):
        told("  note    ", line)
    if dated and dated.date:
        print(f"  date    committed {dated.date:%Y-%m-%d %H:%M:%S} UTC, by a time-stamp that verifies")
    elif dated:
        print("  date    none: a commitment without a time-stamp (--timestamp) shows no date")
    if made.detected and made.caution and not (dated and dated.date):
        told("  caution ", made.caution)
    told("", made.sentence)


def harmless(text: str) -> str:
    """Without what moves a terminal's cursor: names of tensors are whoever's who wrote the file."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def told(start: str, line: str) -> None:
    """A line of any length, in 80 columns; what has no blank stays whole."""
    about = {"initial_indent": start, "subsequent_indent": " " * len(start)}
    print(textwrap.fill(harmless(line), 80, break_long_words=False, break_on_hyphens=False, **about))


def as_json(item: dict[str, Any]) -> dict[str, Any]:
    made: Evidence = item["evidence"]
    dated: Commitment | None = item["commitment"]
    more = {"matches": made.matches, "sentence": made.sentence, "caution": made.caution, "covers": item["covers"]}
    date = dated.date.isoformat() if dated and dated.date else None
    return {"key": item["key"], **asdict(made), **more, "committed": date}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
