"""An owner's key file: all that a mark is read with from a file of weights, whoever wrote either.

safetensors: `message`, the method's secrets, and, where it was told what the network takes, what may be exchanged in it
(`structure/...`, for suspects whose channels were permuted). Metadata: method, version and its options, the marked
weights' names and shapes, names of all weights of layers, the digest of the marked network.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench import spec
from bench.cli.compose import CONF, composed
from bench.errors import ConfigError, UserError, near
from bench.models import align, skeleton, weights
from bench.models.structure import packed, unpacked
from bench.types import Key, Method

FORMAT = "1"
AT = "structure/"  # of what may be exchanged
BITS = 1 << 20  # of a message, at most
FILLED = 1 << 24  # numbers of buffers that files leave out, at most


@dataclass(frozen=True)
class Owned:
    """A key with what it is read by.

    shapes: of the marked weights (out, in, ...); carriers: names of all weights of layers, turned: those stored as
    (in, out); tied: other names of a marked weight; digest: of the marked network (`content`), which alone may be its
    reference; traced: what may be exchanged in it, arrays and what else there is. path and sha256: of the file.
    """

    key: Key
    method: Method
    shapes: dict[str, tuple[int, ...]]
    carriers: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()
    tied: dict[str, list[str]] = field(default_factory=dict)
    digest: str | None = None
    traced: dict[str, Any] | None = None
    path: Path | None = None
    sha256: str = ""

    @property
    def name(self) -> str:
        return spec.kind(self.method)

    @property
    def bound(self) -> bool:
        """Whether the method checks more than bits: that the secret follows from something nobody can choose freely."""
        return getattr(self.method, "binding", False) not in (False, "none")

    def check(self) -> dict[str, bool]:
        """What the method's own verification asks beside bits, in its words, and whether it holds."""
        if not self.bound:
            return {}
        said = (inspect.getdoc(type(self.method).accepts) or "the method's own check").split(".")[0]
        said = said.removeprefix("With binding, ").removeprefix("That ").removeprefix("that ")
        return {" ".join(said.split()): bool(self.method.accepts(self.key))}


def method(name: str, **options: Any) -> Method:
    """A method of conf/method by name, as its yaml has it but for `options`. Raises ConfigError, a line."""
    known = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"method {name!r} is not known; {near(str(name), known)}")
    # Not through Hydra, of which there is one in a process: it may be somebody else's.
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"))
    if node.pop("defaults", None):
        node = OmegaConf.to_container(composed([f"method={name}"]).method)
    names = [n for n in node if n != "_target_"]
    if unknown := [n for n in options if n not in names]:
        raise ConfigError(f"{unknown[0]}: no option of method {name}; {near(unknown[0], names)}")
    return spec.build({**node, **options}, "method")


def described(net: nn.Module, key: Key) -> dict[str, Any]:
    """Of a network what reading its weights from a file takes: shapes, carriers, turned, tied of an Owned."""
    carriers = tuple(weights.weights(net))
    turned = tuple(f"{name}.weight" for name, m in net.named_modules() if weights.conv1d(m))
    names: dict[int, list[str]] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    tied = {name: [n for n in same if n != name] for same in names.values() if len(same) > 1 for name in same}
    tied |= {name: tied[name] for name in key.where if name in tied}
    return {
        "shapes": {name: tuple(weights.read(net, name).shape) for name in key.where},
        "carriers": carriers,
        "turned": turned,
        "tied": tied,
    }


def content(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's numbers: names in order, shapes, and values as float32, whatever the file is like."""
    told = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
        told.update(json.dumps([name, list(tensor.shape)]).encode())
        told.update(tensor.numpy().tobytes())
    return told.hexdigest()


def complete(tensors: Mapping[str, Tensor], tied: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """With all names of tensors that are one: files may hold the first."""
    found = dict(tensors)
    for name, others in tied.items():
        if name in tensors:
            found |= {other: tensors[name] for other in others if other not in found}
    return found


def save(owned: Owned, path: Path) -> Path:
    """Write a key, for its owner's eyes alone (mode 600), whole or not at all. Raises UserError; an older key of that
    name is not written over."""
    key = owned.key
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in key.secret.items()}
    tensors["message"] = key.message.cpu().to(torch.uint8)
    about = {
        "format": FORMAT,
        "method": owned.name,
        "version": str(owned.method.version),
        "options": json.dumps(_options(owned.method)),
        "where": json.dumps(list(key.where)),
        "shapes": json.dumps({name: list(shape) for name, shape in owned.shapes.items()}),
        "carriers": json.dumps(list(owned.carriers)),
        "turned": json.dumps(list(owned.turned)),
        "tied": json.dumps(owned.tied),
    }
    if owned.digest:
        about["digest"] = owned.digest
    if owned.traced:
        tensors |= {f"{AT}{name}": x for name, x in owned.traced["arrays"].items()}
        about["structure"] = json.dumps(owned.traced["more"])
    path = path.expanduser()
    with private(path) as aside:
        save_file(tensors, aside, about)
    return path


@contextmanager
def private(path: Path) -> Iterator[Path]:
    """A file aside that nobody else may read at any moment, which is put in place at the end. Raises UserError where it
    cannot be, or where there is one already."""
    if path.is_symlink() or path.exists():
        raise UserError(f"{path} is there already, and a key that is lost is lost: choose another name", 2)
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        aside = folder / path.name
        yield aside
        aside.chmod(stat.S_IRUSR | stat.S_IWUSR)
        _placed(aside, path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {why}; nothing was left half-written") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _placed(aside: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name by now. Raises OSError."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.is_symlink() or path.exists():
            raise
        os.rename(aside, path)


def _options(made: Method) -> dict[str, Any]:
    """A method's options; of one that names a file, not the file."""
    files = [f.name for f in fields(made) if f.metadata.get("file")]
    values = {f.name: getattr(made, f.name) for f in fields(made) if f.name not in ("epochs", *files)}
    return {name: value for name, value in values.items() if isinstance(value, (str, int, float, bool, type(None)))}


def read(place: str | Path) -> Owned:
    """A key from a file. Raises UserError (exit status 2) for what is none: it may be anybody's."""
    path = Path(place).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such key file", 2)
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no key: {' '.join(str(error).split())}", 2) from error
    try:
        return replace(_made(_beside(path, about), tensors), path=path, sha256=spec.sha256(path))
    except ConfigError as error:
        raise UserError(f"{path}: {error}", 2) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, OSError) as error:
        raise UserError(f"{path}: no key of an owner ({type(error).__name__}: {error})", 2) from error


def _beside(path: Path, about: dict[str, str]) -> dict[str, str]:
    """Metadata; of a key in the harness's cache, whose options and shapes are told beside it, these too."""
    if "options" in about or "method" not in about:
        return about
    meta, marked = path.with_name("meta.json"), path.with_name("model.safetensors")
    if not (meta.is_file() and marked.is_file()):
        raise ValueError("it does not say with which options it was made: bench.embed and Watermark.save write that")
    told = json.loads(meta.read_text(encoding="utf-8"))["identity"]["method"]
    options = {k: v for k, v in told.items() if k not in ("name", "version", "class")}
    with safe_open(marked, "pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in json.loads(about["where"])}
    return {**about, "options": json.dumps(options), "shapes": json.dumps(shapes)}


def _made(about: dict[str, str], tensors: dict[str, Tensor]) -> Owned:
    """A key of what a file holds. Raises ValueError and its like for what does not hold together."""
    where, shapes = json.loads(about["where"]), json.loads(about["shapes"])
    if not isinstance(where, list) or not all(isinstance(name, str) for name in where) or set(where) != set(shapes):
        raise ValueError("where and shapes do not name the same weights")
    for name, shape in shapes.items():
        if not all(isinstance(n, int) and n > 0 for n in shape) or math.prod(shape) > 1 << 40:
            raise ValueError(f"{name} would be {shape}")
    made = method(about["method"], **json.loads(about["options"]))
    message = tensors.pop("message")
    if message.dim() != 1 or not 0 < len(message) <= BITS or bool((message > 1).any()):
        raise ValueError("message is no list of bits")
    if (n := getattr(made, "n_bits", len(message))) != len(message):
        raise ValueError(f"its message has {len(message)} bits, its method {n}")
    if made.version != int(about.get("version", 1)):
        raise ValueError(f"made by version {about.get('version')} of {about['method']}, and this is {made.version}")
    traced = {"arrays": {n.removeprefix(AT): tensors.pop(n) for n in [*tensors] if n.startswith(AT)}}
    if "structure" in about:
        traced["more"] = json.loads(about["structure"])
    carriers, turned = (json.loads(about.get(name, "[]")) for name in ("carriers", "turned"))
    tied = json.loads(about.get("tied", "{}"))
    lists = [carriers, turned, *dict(tied).values()]
    if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists):
        raise ValueError("carriers, turned and tied are names")
    return Owned(
        Key(message.bool(), tensors, tuple(where)),
        made,
        {name: tuple(shape) for name, shape in shapes.items()},
        tuple(carriers or where),
        tuple(turned),
        tied,
        about.get("digest"),
        traced if "more" in traced else None,
    )


# What may be exchanged


def kept(found: align.Traced) -> dict[str, Any]:
    """A trace as a key file has it."""
    arrays: dict[str, Tensor] = {}
    more: dict[str, Any] = {"flips": list(found.flips)}
    for mode, structure in found.structures.items():
        parts, more[mode] = packed(structure)
        arrays |= {f"{mode}.{name}": x for name, x in parts.items()}
    return {"arrays": arrays, "more": more}


def opened(owned: Owned, tensors: Mapping[str, Tensor]) -> align.Traced:
    """What may be exchanged, over the marked network's tensors. Raises ValueError for another network's."""
    arrays, more = owned.traced["arrays"], owned.traced["more"]
    given = complete(tensors, owned.tied)
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in given.items()}
    structures = {}
    try:
        # Buffers that a file leaves out are those that hold nothing.
        empty = {n: shape for n, shape in more["channels"]["shapes"].items() if n not in tensors}
        if sum(map(math.prod, empty.values())) > FILLED:
            raise ValueError(f"the network lacks {len(empty)} of its tensors, {next(iter(empty))} for one")
        tensors |= {name: torch.zeros(shape) for name, shape in empty.items()}
        for mode in ("channels", "blocks", "scale"):
            parts = {n.removeprefix(f"{mode}."): x for n, x in arrays.items() if n.startswith(f"{mode}.")}
            structures[mode] = unpacked(parts, more[mode], tensors)
        flips = tuple(int(i) for i in more["flips"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    # What the file leaves out is no part of it.
    order = sorted(given, key=lambda name: name not in structures["channels"].tensors)  # first names first
    shared = {name: tensors[min([name, *owned.tied.get(name, [])])] for name in order}
    return align.Traced(skeleton.skeleton(shared, owned.carriers, owned.turned), structures, flips)
