"""Liu, Weng, Zhu: Watermarking Deep Neural Networks with Greedy Residuals (ICML 2021; code:
github.com/eil/greedy-residuals)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import ConfigError, among, within
from bench.models import weights
from bench.types import Fit, Key, Task
from methods._regulariser import Regulariser

HASHED = 256  # bits of SHA-256
ORDER = 2**252 + 27742317777372353535851937790883648493  # of Ed25519's base point (RFC 8032, Sec. 5.1)


@dataclass(frozen=True)
class Greedy(Regulariser):
    """Bits in the signs of residuals: means over the larger of each bit's stretch of the weight.

    W flattened in (out, in, kh, kw) order, cut to a multiple of `row`, adaptive average pooling to n x row; in each row
    the round(row / divider) entries of least magnitude are zeroed (0: none); residual r_j = mean of row j, zeros
    counted. Loss: lambda_ x sum_j relu(margin - b_j r_j), b_j = +-1. After the public code (github.com/eil/
    greedy-residuals): row 253, margin 0.1, lambda 0.01; divider 2 is what its command line passes in all its scripts,
    10 the default of a class that never gets to use it. Message: SHA-256 of a signature over `statement`, first bits
    first. The residuals are a public function of the weight: no secret says what is read, and the binding is all that
    an owner has.

    Ours: Ed25519 for RSA of 512 bits, which was factored in 1999. Verification (`accepts`) wants a statement, a public
    key and a signature that is valid, and the message to be its hash: `binding: signature`; nothing of it is secret,
    and whoever has seen it can show it again, so that an owner proves that the public key is theirs by signing a
    challenge. The private key is drawn like all else and stays with the owner: it is in no Key. `binding: none`: a
    random message. The layer is that of all methods here; the public code marks the first convolution of the network
    (method.layer=conv1, of 1,728 weights in theirs: pooling then repeats each of them 43 times), at least two weights
    a bit are needed, so that no bit's weights are all its neighbours' as well.
    """

    linear = False  # what is left out changes with the weights

    n_bits: int = within(1)
    row: int = within(1)
    divider: int = within(0)
    margin: float = within(0)
    statement: str
    binding: str = among("signature", "none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_bits > HASHED:
            raise ConfigError(f"method.n_bits={self.n_bits}: SHA-256, which the message is, has {HASHED} bits")
        if self.kept == 0:
            raise ConfigError(f"method.divider={self.divider} zeroes all {self.row} entries of a row: 2 or more, or 0")

    @property
    def kept(self) -> int:
        """Entries of a row that are not zeroed."""
        return self.row - (int(self.row / self.divider + 0.5) if self.divider else 0)

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n]; with binding, nothing of which is secret, `public` [32], `signature` [64] and `statement` [.] of
        uint8. Raises ConfigError for a layer of less than two weights a bit once it is cut to whole rows."""
        need = -(-2 * self.n_bits // self.row) * self.row
        what = f"weights (two a bit, n_bits={self.n_bits} x 2, in whole rows of row={self.row})"
        name = weights.choose(host, self.layer, Tensor.numel, need, what)
        if self.binding == "none":
            return Key(torch.from_numpy(rng.integers(0, 2, self.n_bits).astype(bool)), {}, (name,))
        private = Ed25519PrivateKey.from_private_bytes(rng.bytes(32))
        statement = self.statement.encode()
        return self._key(private.public_key().public_bytes_raw(), private.sign(statement), statement, name)

    def _key(self, public: bytes, signature: bytes, statement: bytes, name: str) -> Key:
        parts = {"public": public, "signature": signature, "statement": statement}
        secret = {part: torch.frombuffer(bytearray(x), dtype=torch.uint8) for part, x in parts.items() if x}
        return Key(torch.from_numpy(hashed(signature, self.n_bits)), secret, (name,))

    def reader(self, key: Key, device: torch.device) -> Callable[[Tensor], Tensor]:
        return lambda weight: residuals(weight, self.n_bits, self.row, self.kept)

    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """What is zeroed, and what is cut off: entries that move no residual."""
        with torch.enable_grad():
            weight = weights.read(model, key.where[0]).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.reader(key, weight.device)(weight).sum(), weight)
        return {key.where[0]: torch.where(slope == 0, weight.detach(), 0.0)}

    def embedding_loss(self, y: Tensor, truth: Tensor) -> Tensor:
        return functional.relu(self.margin - (2 * truth - 1) * y).sum()

    def accepts(self, key: Key) -> bool:
        """With binding, that the signature is the public key's over the statement, and the message its hash."""
        if self.binding == "none":
            return True
        try:
            public, signature = (key.secret[part].cpu().numpy().tobytes() for part in ("public", "signature"))
            Ed25519PublicKey.from_public_bytes(public).verify(signature, stated(key))
        except (KeyError, ValueError, InvalidSignature):
            return False
        return bool((hashed(signature, key.n_bits) == key.message.cpu().numpy()).all())

    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """Residuals are the same for every key: read once."""
        soft = self.extract(model, key, task)
        for _ in range(count):
            yield self.keygen(other, rng, task), soft

    def forgeries(
        self, model: nn.Module, rng: np.random.Generator, task: Task, fit: Fit, tries: list[int]
    ) -> Iterator[tuple[str, int, Key]]:
        """What is read is public. Without binding it is the claimed message (knob: read). With it, statements that end
        in a counter are signed by one key with one nonce, so that R stays and S alone is made anew: no point of the
        curve is computed, and a try is a block of SHA-512, a product modulo the group's order and two blocks of
        SHA-256. Two such signatures give the private key away; one is shown, and the key is nobody's. Verification asks
        neither for a nonce by RFC 8032 nor for a form of the statement."""
        drawn = self.keygen(model, rng, task)
        read = (self.extract(model, drawn, task) > 0.5).cpu().numpy()
        if self.binding == "none":
            yield "read", 0, Key(torch.from_numpy(read), {}, drawn.where)
            return
        seed, n, size = rng.bytes(32), self.n_bits, (self.n_bits + 7) // 8
        private, start = Ed25519PrivateKey.from_private_bytes(seed), self.statement.encode() + b" "
        public, point = private.public_key().public_bytes_raw(), private.sign(start)[:32]
        scalar, prefix = opened(seed)
        nonce = number(hashlib.sha512(prefix + start).digest())
        challenge, shown = hashlib.sha512(point + public + start), hashlib.sha256(point)
        wanted = int.from_bytes(np.packbits(read).tobytes()) >> -n % 8
        best, least = drawn, n + 1
        for count in range(1, max(tries, default=0) + 1):
            end = b"%d" % count
            one, other = challenge.copy(), shown.copy()
            one.update(end)
            rest = ((nonce + number(one.digest()) * scalar) % ORDER).to_bytes(32, "little")
            other.update(rest)
            wrong = ((int.from_bytes(other.digest()[:size]) >> -n % 8) ^ wanted).bit_count()
            if wrong < least:
                best, least = self._key(public, point + rest, start + end, drawn.where[0]), wrong
            if count in tries:
                yield "grind", count, best


def residuals(weight: Tensor, n: int, row: int, kept: int) -> Tensor:
    """r [n] of a weight: see Greedy."""
    # reshape, not view: a channels_last weight has another stride order than (out, in, kh, kw)
    flat = weight.reshape(-1)[: weight.numel() // row * row]
    rows = functional.adaptive_avg_pool1d(flat[None], n * row).view(n, row)
    if kept == row:
        return rows.mean(1)
    return rows.gather(1, rows.detach().abs().topk(kept, sorted=False).indices).sum(1) / row


def hashed(signature: bytes, n: int) -> np.ndarray:
    """First n bits of SHA-256 over a signature [64]; bytes' high bits first."""
    return np.unpackbits(np.frombuffer(hashlib.sha256(signature).digest(), np.uint8))[:n].astype(bool)


def stated(key: Key) -> bytes:
    """The statement that a claimant shows; none is an empty one."""
    return key.secret["statement"].cpu().numpy().tobytes() if "statement" in key.secret else b""


def number(digest: bytes) -> int:
    """A digest as a scalar modulo the group's order."""
    return int.from_bytes(digest, "little") % ORDER


def opened(seed: bytes) -> tuple[int, bytes]:
    """The secret scalar and the prefix of nonces that an Ed25519 private key [32] stands for (RFC 8032, Sec. 5.1.5)."""
    digest = hashlib.sha512(seed).digest()
    return int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254, digest[32:]
