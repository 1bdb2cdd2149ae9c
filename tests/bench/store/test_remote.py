"""A cache that machines share: what is there is not made again, and what fails there never stops a run."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bench import run
from bench.errors import ConfigError, UserError
from bench.store import cache, remote
from tests.helpers import tiny


@pytest.fixture(autouse=True)
def _forget():
    """A new machine for every test: nothing connected, nothing in memory."""
    remote.connect.cache_clear()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path) -> str:
    (tmp_path / "shared").mkdir()
    return "memory://bucket/prefix" if request.param == "memory" else f"file://{tmp_path}/shared/dir"


class Machine:
    """A folder of its own and what it said and built there."""

    def __init__(self, folder: Path, url: str):
        self.place, self.said, self.built = cache.Cache(str(folder), url), [], 0

    def ask(self, number: int = 1) -> cache.Entry:
        def build(folder: Path) -> dict:
            self.built += 1
            (folder / "weights").write_bytes(b"abc" * 1000)
            return {"n": number}

        remote.connect.cache_clear()  # a process of its own, each time
        return cache.cached(self.place, "stage", {"number": number}, build, self.said.append)


@pytest.fixture
def machines(tmp_path, url) -> tuple[Machine, Machine]:
    return Machine(tmp_path / "a", url), Machine(tmp_path / "b", url)


def there(url: str, name: str = "weights") -> tuple[fsspec.AbstractFileSystem, str]:
    files, path = fsspec.core.url_to_fs(url)
    (found,) = [p for p in files.find(path) if p.endswith(f"/{name}")]
    return files, found


def test_what_one_machine_made_the_other_fetches(machines, url):
    a, b = machines
    first, second = a.ask(), b.ask()
    assert (first.built, second.built) == (True, False)
    assert (a.built, b.built, second["n"]) == (1, 0, 1)
    assert first.meta == second.meta == json.loads((second.path / "meta.json").read_text())
    assert (second.path / "weights").read_bytes() == b"abc" * 1000
    assert a.said == []
    assert b.said == [f"cache: stage/{first.path.name} comes from {url}"]
    b.ask()
    assert len(b.said) == 1
    files, path = there(url, remote.README)
    assert b"meta.json" in files.cat_file(path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "meta", "no meta", "escape"])
def test_a_corrupt_or_half_uploaded_entry_is_told_made_and_uploaded_again(machines, tmp_path, url, damage):
    a, b = machines
    a.ask()
    files, path = there(url, "meta.json" if "meta" in damage or damage == "escape" else "weights")
    content = files.cat_file(path)
    if damage in ("delete", "no meta"):
        files.rm_file(path)
    elif damage == "escape":
        files.pipe_file(path, content.replace(b'"weights"', b'"../weights"'))
    else:
        files.pipe_file(path, content[:-9] + (b"" if damage == "truncate" else b"_" + content[-8:]))
    entry = b.ask()
    assert entry.built
    assert len(b.said) == 1
    assert ("half uploaded" if damage == "no meta" else "is corrupt (") in b.said[0]
    assert "\n" not in b.said[0]
    assert sorted(p.name for p in entry.path.parent.iterdir()) == [entry.path.name, f"{entry.path.name}.lock"]
    c = Machine(tmp_path / "c", url)
    assert not c.ask().built


def test_uploads_that_fail_are_a_warning_and_made_up_for(machines, monkeypatch):
    a, b = machines
    files = remote.connect(a.place.url).files
    with monkeypatch.context() as patched:
        patched.setattr(type(files), "put_file", lambda *args, **kwargs: 1 / 0)
        assert a.ask().built
    (line,) = a.said
    assert line.startswith("warning: stage/")
    assert line.endswith("(ZeroDivisionError: division by zero); it is kept here")
    assert b.ask().built  # nothing was there
    a.ask(2)
    a.place, place = cache.Cache(a.place.root, None), a.place
    assert a.ask(3).built  # without the store
    a.place = place
    assert not a.ask(3).built
    assert not b.ask(3).built
    assert b.built == 1


def test_meta_is_uploaded_last(machines, monkeypatch):
    a, _ = machines
    files, sent = remote.connect(a.place.url).files, []
    put = type(files).put_file

    def record(self, here, there, **kwargs):
        sent.append(re.sub(r"^\.(.*)\.\w{8}\.tmp$", r"\1", Path(there).name))  # in a folder: aside first
        return put(self, here, there, **kwargs)

    monkeypatch.setattr(type(files), "put_file", record)
    a.ask()
    assert sent == ["weights", "meta.json"]


def test_a_store_that_fails_midway_is_a_warning(machines, monkeypatch):
    a, b = machines
    a.ask()
    files = remote.connect(a.place.url).files
    with monkeypatch.context() as patched:
        patched.setattr(type(files), "get_file", lambda *args, **kwargs: 1 / 0)
        assert b.ask().built
    assert "cannot be had from" in b.said[0]
    full = OSError(errno.ENOSPC, "No space left on device")

    def out_of_space(*args, **kwargs):
        raise full

    monkeypatch.setattr(type(files), "get_file", out_of_space)
    with pytest.raises(UserError, match="no space left"):
        Machine(Path(a.place.root) / "c", a.place.url).ask()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nope://bucket", "needs|cannot be used .*nope"),
        ("file:///proc/version/x", "is no folder"),
        ("sftp://user:secret@host/x", "cache.url holds a password"),
        ("http://127.0.0.1:9/x", "cannot be used|needs a driver"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_before_anything_is_made(tmp_path, url, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Machine(tmp_path, url).ask()
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_driver_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"needs a driver: Install s3fs .*pip install -e '\.\[s3\]'"):
        Machine(tmp_path, "s3://bucket/prefix").ask()


def test_two_machines_train_once_and_the_url_is_in_no_hash(tmp_path):
    url = "memory://bucket/prefix"
    words = ("uchida", "prune", "train.epochs=1")
    made, fetched = [], []
    one = run.run(tiny(tmp_path / "a", *words, f"cache.url={url}"), made.append)
    remote.connect.cache_clear()
    two = run.run(tiny(tmp_path / "b", *words, f"cache.url={url}"), fetched.append)
    assert [line.split(":")[0] for line in made if "training" in line or "embedding" in line] == ["mark", "host"]
    assert not [line for line in fetched if "training" in line or "embedding" in line]
    # What only processors that compute in bfloat16 ask for is left out.
    found = [line.split("/")[0] for line in fetched if "comes from" in line]
    assert [stage for stage in found if stage != "cache: work"] == [
        "cache: data",
        "cache: mark",
        "cache: host",
        *["cache: control"] * 2,  # what the test split can say, random keys
    ]
    assert one.path.name == two.path.name
    assert [(r.knob, r.strength, r.ber, r.utility) for r in one.rows] == [
        (r.knob, r.strength, r.ber, r.utility) for r in two.rows
    ]
    x = run.prepare(tiny(tmp_path / "b", *words, f"cache.root={tmp_path}/b/elsewhere"))
    assert x.hashes == (one.rows[0].run_id, one.rows[0].config_hash)


def test_an_unusable_url_fails_the_job_with_exit_status_2(tmp_path):
    outcome = run.job(tiny(tmp_path, "uchida", "prune", "cache.url=nope://x"))
    assert (outcome.status, outcome.code) == ("failed", 2)
    assert outcome.message.startswith("cache.url=nope://x ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.quick
def test_a_real_s3_api(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**names, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        with pytest.raises(ConfigError, match=r"cache\.url=s3://bucket/prefix cannot be used"):
            Machine(tmp_path / "early", "s3://bucket/prefix").ask()
        s3 = fsspec.filesystem("s3")
        s3.mkdir("bucket")
        a, b = (Machine(tmp_path / name, "s3://bucket/prefix") for name in "ab")
        assert a.ask().built
        assert not b.ask().built
        # What another machine deletes, truncates or adds is seen: no listing is trusted for long.
        files, path = there("s3://bucket/prefix")
        files.pipe_file(path, b"abc")
        assert Machine(tmp_path / "c", "s3://bucket/prefix").ask().built
        assert not Machine(tmp_path / "d", "s3://bucket/prefix").ask().built
        made, fetched = [], []
        words = ("uchida", "prune", "train.epochs=1", "cache.url=s3://bucket/run")
        run.run(tiny(tmp_path / "e", *words), made.append)
        run.run(tiny(tmp_path / "f", *words), fetched.append)
        assert sum("training" in line or "embedding" in line for line in made) == 2
        assert not [line for line in fetched if "training" in line or "embedding" in line]
        monkeypatch.setattr(s3, "put_file", lambda *args, **kwargs: 1 / 0)
        assert a.ask(2).built
        assert "was not uploaded" in a.said[-1]
    finally:
        server.kill()
        server.wait()
    started = time.perf_counter()
    with pytest.raises(ConfigError, match="cannot be used"):
        Machine(tmp_path / "late", "s3://bucket/prefix").ask()
    assert time.perf_counter() - started < 60
    assert os.environ["AWS_ENDPOINT_URL"]


def test_an_upload_replaces_a_link_and_follows_none(tmp_path):
    shared, mine = tmp_path / "shared", tmp_path / "mine.txt"
    mine.write_text("mine")
    place = f"file://{shared}"
    first = Machine(tmp_path / "a", place)
    address = first.ask().path.name
    (shared / "stage" / address / "meta.json").unlink()
    weights = shared / "stage" / address / "weights"
    weights.unlink()
    weights.symlink_to(mine)
    remote.connect.cache_clear()
    assert Machine(tmp_path / "b", place).ask().built
    assert mine.read_text() == "mine"
    assert not weights.is_symlink()


def test_a_store_is_not_opened_through_a_link(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / remote.README).symlink_to(tmp_path / "elsewhere.txt")
    remote.connect.cache_clear()
    remote.connect(f"file://{tmp_path}/shared")
    assert not (tmp_path / "elsewhere.txt").exists()


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_another_user_left_there_is_neither_waited_for_nor_followed(tmp_path, what):
    shared = tmp_path / "shared"
    place = f"file://{shared}"
    address = Machine(tmp_path / "a", place).ask().path.name
    there = shared / "stage" / address
    if what == "folder":
        (tmp_path / "else").mkdir()
        shutil.rmtree(there)
        there.symlink_to(tmp_path / "else")
    else:
        (there / "meta.json").unlink()
        os.mkfifo(there / "meta.json") if what == "pipe" else (there / "meta.json").symlink_to("/dev/zero")
    remote.connect.cache_clear()
    b = Machine(tmp_path / "b", place)
    assert b.ask().built
    assert b.said
    assert not list((tmp_path / "else").iterdir()) if what == "folder" else True
