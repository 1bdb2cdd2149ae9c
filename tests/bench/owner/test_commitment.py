"""A claim with a date: what a commitment covers, a throw-away authority's time-stamps, and who was first."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import bench
from bench import verify as command
from bench.errors import UserError
from bench.owner import commitment, keyfile
from tests.bench.owner.conftest import net, trained

TSA = """\
[tsa]
default_tsa = t
[t]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
[ext]
extendedKeyUsage = critical,timeStamping
keyUsage = critical,digitalSignature
basicConstraints = critical,CA:FALSE
"""


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Path:
    """A folder with ca.pem and all that `stamp` takes."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("authority")
    (folder / "tsa.cnf").write_text(TSA.format(folder=folder))
    (folder / "serial").write_text("01")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    at = lambda name: str(folder / name)  # noqa: E731
    openssl("req", "-x509", *new, "-keyout", at("ca.key"), "-out", at("ca.pem"), "-days", "9", "-subj", "/CN=CA")
    openssl("req", *new, "-keyout", at("tsa.key"), "-out", at("tsa.csr"), "-subj", "/CN=TSA")
    signed = ["-CA", at("ca.pem"), "-CAkey", at("ca.key"), "-CAcreateserial", "-days", "9"]
    openssl(
        *("x509", "-req", "-in", at("tsa.csr"), "-out", at("tsa.pem")),
        *signed,
        "-extfile",
        at("tsa.cnf"),
        *("-extensions", "ext"),
    )
    return folder


def stamp(authority: Path, content: Path, out: Path, digest: str = "sha256") -> Path:
    query = str(out.with_suffix(".tsq"))
    openssl("ts", "-query", "-data", str(content), f"-{digest}", "-cert", "-out", query)
    openssl("ts", "-reply", "-config", str(authority / "tsa.cnf"), "-queryfile", query, "-out", str(out))
    return out


@pytest.fixture
def claim(owned, tmp_path) -> Path:
    """A commitment to the owner's key, in a folder of its own."""
    return commitment.write(tmp_path / "commitment.json", owned / "key.safetensors", owned / "marked.pth", "I, today")


def test_a_commitment_has_hashes_alone_and_says_what_it_covers(owned, claim):
    told = json.loads(claim.read_text())
    assert told.keys() == {"kind", "version", *commitment.FIELDS}
    assert all(len(told[name]) == 64 for name in commitment.FIELDS)
    key = keyfile.read(owned / "key.safetensors")
    said = commitment.checked(commitment.read(claim), key, owned / "marked.pth")
    assert said[1:] == ["and to the reference", "statement.txt is what was committed"]
    claim.with_name("statement.txt").write_text("I, yesterday")
    assert "statement.txt is not what was committed" in commitment.checked(commitment.read(claim), key)


def test_a_commitment_for_another_key_or_network_is_refused(owned, claim, tmp_path):
    model = net(3)
    mark = bench.Watermark("uchida", model, seed=1, n_bits=48)
    mark.save(tmp_path / "other.safetensors")
    other, own = keyfile.read(tmp_path / "other.safetensors"), keyfile.read(owned / "key.safetensors")
    made = commitment.read(claim)
    with pytest.raises(UserError, match="commits to another key"):
        commitment.checked(made, other)
    with pytest.raises(UserError, match="commits to another network than the key was saved with"):
        commitment.checked(replace(made, model_content="0" * 64), own)
    with pytest.raises(UserError, match=r"commits to another network than .*plain"):
        commitment.checked(made, replace(own, digest=None), owned / "plain.pth")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100000,
        '{"kind": "watermark-bench commitment", "version": 2}',
        '{"kind": "watermark-bench commitment", "version": 1}',
        json.dumps({"kind": commitment.KIND, "version": 1, **dict.fromkeys(commitment.FIELDS, "x" * 64)}),
        json.dumps({"kind": commitment.KIND, "version": 1, **dict.fromkeys(commitment.FIELDS, 3)}),
        " " * (2 << 20),
    ],
)
def test_what_is_no_commitment_is_one_line(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError) as told:
        commitment.read(tmp_path / "c.json")
    assert told.value.code == 2
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("digest", ["sha256", "sha512"])
def test_a_time_stamp_dates_what_it_is_of_alone(owned, authority, claim, tmp_path, digest):
    pytest.importorskip("rfc3161_client")
    response = stamp(authority, claim, tmp_path / "r.tsr", digest)
    made = commitment.dated(commitment.read(claim), [response], [authority / "ca.pem"])
    assert abs((datetime.now(UTC) - made.date).total_seconds()) < 600
    claim.write_text(claim.read_text() + " ")  # other bytes
    assert commitment.dated(commitment.read(claim), [response], [authority / "ca.pem"]).date is None


def test_time_stamps_that_prove_nothing_are_refused(owned, authority, claim, tmp_path):
    pytest.importorskip("rfc3161_client")
    response, made = stamp(authority, claim, tmp_path / "r.tsr"), commitment.read(claim)
    content = bytearray(response.read_bytes())
    content[-4] ^= 1
    (tmp_path / "bad.tsr").write_bytes(content)
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(tmp_path / "k")]
    openssl("req", "-x509", *new, "-out", str(tmp_path / "other.pem"), "-days", "9", "-subj", "/CN=Other")
    (tmp_path / "junk.tsr").write_bytes(b"junk")
    for one, roots, said in (
        (response, [], "whose certificate is to be trusted"),
        (response, [tmp_path / "other.pem"], "does not verify"),
        (tmp_path / "bad.tsr", [authority / "ca.pem"], "does not verify"),
        (tmp_path / "junk.tsr", [authority / "ca.pem"], "no time-stamp response"),
        (tmp_path / "r.tsq", [authority / "ca.pem"], "no time-stamp response"),
        (response, [tmp_path / "junk.tsr"], "no certificates in PEM"),
    ):
        with pytest.raises(UserError, match=said) as told:
            commitment.dated(made, [one], roots)
        assert told.value.code == 2


def test_of_two_keys_that_both_verify_the_earlier_committed_is_named(owned, authority, tmp_path, capsys, monkeypatch):
    pytest.importorskip("rfc3161_client")
    # The thief writes a mark of its own into the stolen network, in another layer: both verify from then on.
    model = net()
    model.load_state_dict(torch.load(owned / "marked.pth", weights_only=True))
    mark = bench.Watermark("uchida", model, seed=8, n_bits=48, layer="body.0")
    trained(model.body, _Part(mark, model))
    mark.save(tmp_path / "thief.safetensors")
    torch.save(model.state_dict(), tmp_path / "both.pth")
    monkeypatch.chdir(tmp_path)
    words = ["both.pth"]
    dates = {}
    for name, key in (("owner", owned / "key.safetensors"), ("thief", tmp_path / "thief.safetensors")):
        place = (
            commitment.write(tmp_path / name / "commitment.json", key, tmp_path / "both.pth", name)
            if name == "thief"
            else (commitment.write(tmp_path / name / "commitment.json", key, owned / "marked.pth", name))
        )
        response = stamp(authority, place, tmp_path / f"{name}.tsr")
        words += ["--key", str(key), "--commitment", str(place), "--timestamp", str(response)]
        dates[name] = place
    words += ["--ca", str(authority / "ca.pem")]
    # Stamps have whole seconds: the later one is made later by hand.
    real = commitment._date
    late = lambda at, content, roots: (d := real(at, content, roots)) and d.replace(year=d.year + ("thief" in at.name))  # noqa: E731
    monkeypatch.setattr(commitment, "_date", late)
    assert command.main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("VERIFIED:") == 2
    assert f"the earlier claim is {owned / 'key.safetensors'}, committed" in out
    # The order in which they are given does not matter; without dates nothing is settled.
    assert command.main([words[0], *words[7:13], *words[1:7], *words[13:]]) == 0
    assert f"the earlier claim is {owned / 'key.safetensors'}" in " ".join(capsys.readouterr().out.split())
    assert command.main([words[0], *words[1:3], *words[7:9]]) == 0
    assert "neither has a date that was verified" in " ".join(capsys.readouterr().out.split())
    assert command.main([*words[:7], *words[13:], "--key", words[8]]) == 0
    assert f"{words[8]} has no date" in " ".join(capsys.readouterr().out.split())
    # A commitment, or a stamp, of nobody's key here settles nothing.
    assert command.main([*words[:3], *words[9:11]]) == 2
    assert command.main([*words[:5], *words[11:]]) == 2


class _Part:
    """The mark, asked for the whole network while a part of it trains."""

    def __init__(self, mark, model):
        self.mark, self.model = mark, model

    def penalty(self, _):
        return self.mark.penalty(self.model)

    def step(self, _):
        self.mark.step(self.model)
