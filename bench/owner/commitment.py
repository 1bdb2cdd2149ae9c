"""A claim with a date: what a key and its network were when it was made, and a time-stamp that says when.

Overwriting costs an attacker nothing, so that two marks in one network both verify: who committed first is the owner.
The commitment has hashes alone and may be published. An authority's time-stamp (RFC 3161) of it is made with openssl:
`openssl ts -query -data commitment.json -cert -out query.tsq`, and checked with rfc3161-client.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import spec
from bench.errors import UserError
from bench.models import checkpoints
from bench.owner import keyfile
from bench.store.files import write_json, write_text

KIND = "watermark-bench commitment"
FIELDS = ("key_sha256", "model_sha256", "model_content", "statement_sha256")
MOST = 1 << 20  # bytes of any of its files


@dataclass(frozen=True)
class Commitment:
    """Hashes, hex: of the key file; of the marked network's file and of its numbers (keyfile.content); of the
    statement. path: of the file; date: by a time-stamp that was verified, UTC; None: none was."""

    key_sha256: str
    model_sha256: str
    model_content: str
    statement_sha256: str
    path: Path
    date: datetime | None = None


def write(path: Path, key: Path, model: Path, statement: str) -> Path:
    """Commit to a key and the network it is in; the statement (who, what, when) lies beside, as statement.txt, and its
    hash alone is in the commitment. Raises UserError, also for another network than the key was saved with."""
    owned, shown = keyfile.read(key), [spec.sha256(file) for file in checkpoints.files(model)]
    held = contents(owned, model)
    if owned.digest not in (None, held):
        raise UserError(f"{model}: another network than {key} was saved with", 2)
    told = {
        "kind": KIND,
        "version": 1,
        "key_sha256": owned.sha256,
        "model_sha256": shown[0] if len(shown) == 1 else spec.digest(shown, 64),
        "model_content": held,
        "statement_sha256": hashlib.sha256(statement.encode()).hexdigest(),
    }
    write_text(path.with_name("statement.txt"), statement)
    write_json(path, told)
    return path


def commit(path: str | Path, key: str | Path, model: str | Path, statement: str = "") -> Path:
    """Commit to a key file and the file of the network it is in: hashes into `path`, the statement beside it. Raises
    UserError."""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    said = statement or f"The holder of this key claims the network whose hash is committed with it. {when}"
    return write(Path(path), Path(key), Path(model), said)


def contents(owned: keyfile.Owned, model: str | Path) -> str:
    """The digest of a network's numbers (keyfile.content), whichever of its tied names a file has."""
    return keyfile.content(keyfile.complete(checkpoints.plain(checkpoints.read(model)).tensors, owned.tied))


def read(place: str | Path) -> Commitment:
    """A commitment from its file. Raises UserError (exit status 2)."""
    path = Path(place).expanduser()
    try:
        told: Any = json.loads(_bytes(path))
        if not isinstance(told, dict) or told.get("kind") != KIND or told.get("version") != 1:
            raise ValueError(f"kind is not {KIND!r}, version 1")
        values = {name: told[name] for name in FIELDS}
        if not all(isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef") for v in values.values()):
            raise ValueError("a hash is not 64 hexadecimal digits")
    except (ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: no commitment ({type(error).__name__}: {error})", 2) from error
    return Commitment(**values, path=path)


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file", 2)
        if path.stat().st_size > MOST:
            raise UserError(f"{path}: larger than such files are", 2)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", 2) from error


def checked(made: Commitment, owned: keyfile.Owned, reference: str | Path | None = None) -> list[str]:
    """What a commitment covers, in words. Raises UserError (exit status 2) where it is another key's or network's."""
    if made.key_sha256 != owned.sha256:
        raise UserError(f"{made.path}: commits to another key than {owned.path}", 2)
    said = [f"{made.path} commits to this key"]
    if owned.digest and owned.digest != made.model_content:
        raise UserError(f"{made.path}: commits to another network than the key was saved with", 2)
    if reference is not None:
        if contents(owned, reference) != made.model_content:
            raise UserError(f"{made.path}: commits to another network than {reference}", 2)
        said.append("and to the reference")
    statement = made.path.with_name("statement.txt")
    if statement.is_file() and statement.stat().st_size <= MOST:
        same = hashlib.sha256(statement.read_bytes()).hexdigest() == made.statement_sha256
        said.append("statement.txt is what was committed" if same else "statement.txt is not what was committed")
    return said


def dated(made: Commitment, stamps: Sequence[str | Path], authorities: Sequence[str | Path]) -> Commitment:
    """The commitment with the earliest date that a time-stamp of it gives. Raises UserError (exit status 2) where one
    of the stamps is none, or where no authority that is trusted (PEM certificates) signed it; stamps of other content
    are passed over."""
    content = _bytes(made.path)
    dates = [date for stamp in stamps if (date := _date(Path(stamp), content, authorities)) is not None]
    return made if not dates else Commitment(**{**vars(made), "date": min(dates)})


def _date(stamp: Path, content: bytes, authorities: Sequence[str | Path]) -> datetime | None:
    """When an authority saw the content; None: it saw something else."""
    try:
        from cryptography import x509
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
    except ImportError as error:
        raise UserError(
            f"time-stamps are checked by rfc3161-client: pip install '.[timestamp]' ({error})", 2
        ) from error
    if not authorities:
        raise UserError(f"{stamp}: whose certificate is to be trusted? --ca ca.pem", 2)
    try:
        roots = [cert for place in authorities for cert in x509.load_pem_x509_certificates(_bytes(Path(place)))]
    except ValueError as error:
        raise UserError(f"{authorities[0]}: no certificates in PEM ({error})", 2) from error
    try:
        response = decode_timestamp_response(_bytes(stamp))
        imprint = response.tst_info.message_imprint.message
    except (ValueError, TypeError) as error:
        raise UserError(f"{stamp}: no time-stamp response ({error})", 2) from error
    seen = {hashlib.new(kind, content).digest() for kind in ("sha256", "sha384", "sha512")}
    if imprint not in seen:
        return None
    builder = VerifierBuilder()
    for root in roots:
        builder = builder.add_root_certificate(root)
    try:
        builder.build().verify_message(response, content)
    except (VerificationError, ValueError) as error:
        raise UserError(f"{stamp}: the time-stamp does not verify: {str(error).split(': ErrorStack')[0]}", 2) from error
    return response.tst_info.gen_time


def earlier(claims: Sequence[tuple[str, Commitment | None]]) -> str:
    """Of claims that all verify, (name, commitment), in words which was first."""
    known = sorted(((made.date, name) for name, made in claims if made and made.date), key=lambda pair: pair[0])
    if not known:
        return "both verify, and neither has a date that was verified: nothing says who was first"
    undated = [name for name, made in claims if not (made and made.date)]
    if len(known) > 1 and known[0][0] == known[1][0]:
        return f"{known[0][1]} and {known[1][1]} were committed at the same time, {known[0][0]:%Y-%m-%d %H:%M:%S} UTC"
    end = f"; {', '.join(undated)} has no date" if undated else ""
    later = f", before {known[1][1]} ({known[1][0]:%Y-%m-%d %H:%M:%S} UTC)" if len(known) > 1 else ""
    return f"the earlier claim is {known[0][1]}, committed {known[0][0]:%Y-%m-%d %H:%M:%S} UTC{later}{end}"
