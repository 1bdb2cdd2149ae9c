"""A second, shared level of the cache below a URL that fsspec knows: `cache.url=s3://bucket/prefix`, file:///dir.

The layout is the local cache's, <stage>/<address>/{meta.json, ...}, and meta.json is written last: where it is, the
entry is whole. Nothing is locked between machines: two that miss the same stage at once both make it, and what each
of them uploads is whole or fails its checksums. Whoever can write there can change results: the checksums are
against accidents, not against malice.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.errors import ConfigError
from bench.progress import Say
from bench.store.files import published

README = "watermark-bench.txt"
META_MOST = 2**20  # bytes of a meta.json
NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # of a stage's file
ABOUT = b"Stages shared by `python -m bench cache.url=...`: each folder is complete once it holds meta.json.\n"


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return said if type(error) is ValueError else f"{type(error).__name__}: {said}"


@lru_cache
def connect(url: str) -> Remote:
    """The store at a URL, tried once per process. Raises ConfigError when it cannot be used at all."""
    import fsspec

    if "://" not in url:
        raise ConfigError(f"cache.url={url} is no URL: file:///dir, s3://bucket/prefix")
    if urlsplit(url).password:
        raise ConfigError("cache.url holds a password, and run files record it: give it through the environment")
    try:
        # Object storage has no folders to make, and making them would create a bucket that was only misspelt.
        local = fsspec.utils.get_protocol(url) == "file"
        files, path = fsspec.core.url_to_fs(url, **({"auto_mkdir": True} if local else {}))
        if local and not Path(path).parent.is_dir():
            raise ConfigError(f"cache.url={url}: {Path(path).parent} is no folder: make it first, if that is the place")
        mark = f"{path.rstrip('/')}/{README}"
        if local and not os.path.lexists(mark):  # what others made a link of is not written through
            with published(Path(mark)) as aside:
                aside.write_bytes(ABOUT)
        elif not local and not files.exists(mark):
            files.pipe_file(mark, ABOUT)
    except ImportError as error:
        extra = "; for s3://: pip install -e '.[s3]'" if url.startswith("s3") else ""
        raise ConfigError(f"cache.url={url} needs a driver: {error}{extra}") from error
    except ConfigError:
        raise
    except Exception as error:  # every driver has errors of its own
        raise ConfigError(f"cache.url={url} cannot be used ({_reason(error)})") from error
    return Remote(url, files, path.rstrip("/"), set(), local)


@dataclass(frozen=True)
class Remote:
    """A store that answers. `known`: the entries that this process has seen there, whole."""

    url: str
    files: Any
    path: str
    known: set[str]
    local: bool = False

    def fetch(
        self, name: str, folder: Path, check: Callable[[Path], dict[str, Any]], say: Say
    ) -> dict[str, Any] | None:
        """Copy the entry <stage>/<address> into an empty folder; what `check` makes of it, or None for no entry.

        An entry that `check` refuses (ValueError) is withdrawn, and it or a store that does not answer is reported:
        neither stops a run. Raises OSError for a disk that is full here.
        """
        there = f"{self.path}/{name}"
        try:
            try:
                meta = self._regular(f"{there}/meta.json", META_MOST) and self.files.cat_file(f"{there}/meta.json")
            except FileNotFoundError:
                if self.files.exists(there):
                    say(f"cache: {name} in {self.url} is half uploaded; making it here")
                return None
            try:
                for file in json.loads(meta)["sha256"]:
                    if not NAME.fullmatch(file):
                        raise ValueError(f"{file!r} is no name of a stage's file")
                    self._regular(f"{there}/{file}", shutil.disk_usage(folder).free)
                    self.files.get_file(f"{there}/{file}", str(folder / file))
                (folder / "meta.json").write_bytes(meta)
                found = check(folder)
            except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
                say(f"cache: {name} in {self.url} is corrupt ({_reason(error)}); making it again")
                self.files.rm_file(f"{there}/meta.json")
                return None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            say(f"warning: {name} cannot be had from {self.url} ({_reason(error)}); making it here")
            return None
        self.known.add(name)
        say(f"cache: {name} comes from {self.url}")
        return found

    def _regular(self, path: str, most: int) -> bool:
        """True. Raises FileNotFoundError, and ValueError for a link, pipe or device, or more bytes than `most`: whoever
        may write there must not make this machine wait or fill its disk."""
        about = self.files.info(path)
        if about.get("islink") or about["type"] != "file":
            raise ValueError(f"{Path(path).name} is no regular file")
        if (about.get("size") or 0) > most:
            raise ValueError(f"{Path(path).name} has {about['size']:,} bytes")
        return True

    def _put(self, file: Path, path: str) -> None:
        """Upload whole or not at all. In a folder a file takes the place of another only by being renamed, so that a
        link that lies there is replaced, not followed; an object store writes whole objects."""
        if not self.local:
            self.files.put_file(str(file), path)
            return
        if link := next((p for p in list(Path(path).parents)[:2] if p.is_symlink()), None):
            raise ValueError(f"{link} is a link")
        with published(Path(path)) as aside:
            self.files.put_file(str(file), str(aside))

    def offer(self, name: str, folder: Path, say: Say) -> None:
        """Upload an intact local entry unless it is there, meta.json last; a failure is a warning line."""
        if name in self.known:
            return
        there = f"{self.path}/{name}"
        try:
            if not self.files.exists(f"{there}/meta.json"):
                names = sorted(p.name for p in folder.iterdir() if p.name != "meta.json")
                for file in [*names, "meta.json"]:
                    self._put(folder / file, f"{there}/{file}")
        except Exception as error:
            say(f"warning: {name} was not uploaded to {self.url} ({_reason(error)}); it is kept here")
        else:
            self.known.add(name)
