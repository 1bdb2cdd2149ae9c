"""cached(): a stage's files, addressed by the content of its configuration.

Under one lock per address: build in a folder aside, write checksums, publish by renaming the folder. A killed
build leaves only a folder aside, which the next build of the same address removes; a reader verifies checksums and
a mismatch is reported and built again. Only safetensors and JSON are read: no pickle. What is not here may be in a
store that machines share (bench.store.remote): it is fetched into the folder aside, and what was built here uploaded.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from bench import spec
from bench.errors import UserError
from bench.progress import Say, silent
from bench.store import remote
from bench.store.files import DAY, as_json, write_json

# Enters every address: raise it when training or data decoding would give other bytes for equal configuration.
VERSION = 1
META = {"identity": dict, "measured": dict, "seconds": float, "created_at": str, "sha256": dict}  # of meta.json
SECRET = "key.safetensors"  # for its owner's eyes alone; all else is read by whoever may read the folder


@dataclass(frozen=True)
class Cache:
    """Where stages are kept: a folder of this machine and, if it has a URL, a store shared with others."""

    root: str
    url: str | None


@dataclass(frozen=True)
class Entry:
    """A published stage: its folder, its meta.json, and whether this call had to build it."""

    path: Path
    meta: dict[str, Any]
    built: bool

    def __getitem__(self, name: str) -> Any:
        return self.meta["measured"][name]


_used: ContextVar[dict[str, None] | None] = ContextVar("used", default=None)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Notes, within the block, the stages that are opened or built: `used`."""
    token = _used.set({})
    try:
        yield
    finally:
        _used.reset(token)


def used() -> list[str]:
    """The stages, <stage>/<address>, since `noted` began; run files hold them."""
    return sorted(_used.get() or {})


def checksum(meta: dict[str, Any]) -> str:
    """Of all that meta.json says beside it."""
    return spec.digest({name: value for name, value in meta.items() if name != "check"}, 64)


def _read(path: Path, address: str | None = None) -> dict[str, Any]:
    """meta.json of a published stage. Raises ValueError with the reason when the folder is not what it says, or is not
    that of an address <stage>/<digest> (None: the one its place says)."""
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        types = {name: type(value) for name, value in meta.items() if name != "check"}
    except PermissionError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"meta.json: {type(error).__name__}") from error
    if types not in (META, META | {"seconds": int}):
        raise ValueError("meta.json: other entries than it should have")
    # Those of before there was a check have none, and nothing beside what META lists.
    if "check" in meta and meta["check"] != checksum(meta):
        raise ValueError("meta.json: checksum differs")
    stage, _, name = (address or f"{path.parent.name}/{path.name}").rpartition("/")
    if (meta["identity"].get("stage"), spec.digest(meta["identity"])) != (stage, name):
        raise ValueError("meta.json: it is that of another entry")
    held = {p.name for p in path.iterdir()} - {"meta.json"}
    if odd := sorted(held ^ meta["sha256"].keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in meta['sha256'] else 'not one of its files'}")
    for file, expected in meta["sha256"].items():
        if (path / file).is_symlink() or not (path / file).is_file():
            raise ValueError(f"{file} is no regular file")
        if spec.sha256(path / file) != expected:
            raise ValueError(f"{file}: checksum differs")
    return meta


def addressed(stage: str, identity: Any) -> tuple[dict[str, Any], str]:
    """(identity, address) of a stage: all that its meta.json says it is of, and that as a folder's name."""
    whole = {"version": VERSION, "stage": stage, **spec.canonical(identity)}
    return whole, spec.digest(whole)


def cached(
    place: str | Path | Cache, stage: str, identity: Any, build: Callable[[Path], dict[str, Any]], say: Say = silent
) -> Entry:
    """The entry of (stage, identity), built by `build(folder) -> measured` unless it is here or there and intact.

    Raises UserError when the disk is full or not writable, ConfigError for a shared store that cannot be used.
    """
    place = place if isinstance(place, Cache) else Cache(str(place), url=None)
    shared = remote.connect(place.url) if place.url else None
    identity, address = addressed(stage, identity)
    path = Path(place.root).expanduser() / stage / address
    try:
        entry = _here(path, identity, build, shared, say)
    except SafetensorError as error:
        # safetensors reports a full disk as an error of its own, without an errno.
        raise UserError(f"cannot write {path}: {error}; nothing was left half-written") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {path}; nothing was left half-written") from error
        if isinstance(error, PermissionError) and error.filename and Path(error.filename).exists():
            raise UserError(f"{error.filename} is another user's; set results_dir= or cache.root=") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"cannot write {path}: {error.strerror}; set results_dir=") from error
        raise
    if (names := _used.get()) is not None:
        names[f"{stage}/{address}"] = None
    if shared:
        # Without the lock: whoever waits here can go on. What an earlier run could not upload, this one does.
        shared.offer(f"{stage}/{address}", path, say)
    return entry


def _here(
    path: Path,
    identity: dict[str, Any],
    build: Callable[[Path], dict[str, Any]],
    shared: remote.Remote | None,
    say: Say,
) -> Entry:
    """The entry in its place on this machine: found, fetched or built, under its lock unless it was found."""
    name = f"{path.parent.name}/{path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ValueError):  # looked at again, and reported, under the lock
        entry = Entry(path, _read(path), built=False)
        with contextlib.suppress(OSError):  # another user's
            os.utime(path)  # when it was used last: bench.cache
        return entry
    with _locked(path.with_name(f"{path.name}.lock"), name, say):
        if path.is_dir():
            try:
                return Entry(path, _read(path), built=False)
            except ValueError as error:
                say(f"cache: {name} is corrupt ({error}); making it again")
                shutil.rmtree(path)
        if shared:
            with _aside(path) as aside:
                if meta := shared.fetch(name, aside, lambda folder: _read(folder, name), say):
                    os.rename(aside, path)
                    return Entry(path, meta, built=False)
        return _publish(path, identity, build)


def partial(aside: Path) -> Path:
    """Where a build that is handed `aside` may keep what a later one of the same address can go on from; it is removed
    when the entry is published."""
    return aside.with_name(f"{aside.name.rsplit('.', 2)[0]}.partial")


@contextlib.contextmanager
def _locked(path: Path, name: str, say: Say) -> Iterator[None]:
    lock = FileLock(path)
    try:
        held = lock.acquire(timeout=0.2)
    except Timeout:
        say(f"waiting for another process that makes {name}")
        held = lock.acquire()
    with held:
        yield


def _swept(stage: Path) -> None:
    """Remove what killed builds of other addresses left aside, after a day: nobody may ever build those again."""
    for left in stage.glob(".*.tmp"):
        lock = FileLock(stage / f"{left.name.rsplit('.', 2)[0].removeprefix('.')}.lock")
        with contextlib.suppress(OSError, Timeout):
            if time.time() - left.stat().st_mtime > DAY:
                with lock.acquire(timeout=0):  # one that is held is being built
                    shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    # We hold the lock: whatever lies aside under this address was left by a process that was killed.
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    _swept(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _readable(folder: Path) -> None:
    """Modes as the umask has them, which safetensors does not ask: others may read a cache that is shared."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod(0o600 if file.name == SECRET else 0o666 & ~umask)


def _publish(path: Path, identity: dict, build: Callable[[Path], dict[str, Any]]) -> Entry:
    with _aside(path) as aside:
        started = time.perf_counter()
        measured = build(aside)
        meta = {
            "identity": identity,
            "measured": measured,
            "seconds": round(time.perf_counter() - started, 3),
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "sha256": {p.name: spec.sha256(p) for p in sorted(aside.iterdir())},
        }
        meta = json.loads(as_json(meta))
        meta["check"] = checksum(meta)
        write_json(aside / "meta.json", meta)
        _readable(aside)
        os.rename(aside, path)
        shutil.rmtree(partial(aside), ignore_errors=True)
        return Entry(path, meta, built=True)
