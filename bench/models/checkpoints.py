"""Weights from a file that somebody else wrote: tensors by name, or one line that says why not. Nothing of it is run.

safetensors, whole or in shards with an index; what torch.save wrote, through `torch.load(weights_only=True)`, which
builds tensors and refuses everything else.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.errors import UserError

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
NESTED = ("state_dict", "model", "model_state_dict", "ema")  # under which training scripts keep weights
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
INDEX = "safetensors.index.json"
MOST = 8 << 20  # bytes of an index


@dataclass(frozen=True)
class Weights:
    """Tensors of a file by name. said: what was taken otherwise than it is written, in words; prefix: what was left out
    of all names; files: of which it consists."""

    tensors: dict[str, Tensor]
    said: tuple[str, ...] = ()
    prefix: str = ""
    files: tuple[Path, ...] = field(default_factory=tuple)

    def noting(self, *said: str) -> Weights:
        return replace(self, said=(*self.said, *said))


def read(place: str | Path, under: str | None = None) -> Weights:
    """The weights in a file, on the CPU, in its own names and dtypes. under: the entry of a pickled dictionary that
    holds them (None: the first of NESTED). Raises UserError (exit status 2) for what is no such file."""
    path = _file(Path(place))
    if path.name.endswith(INDEX):
        found = _sharded(path)
    elif path.suffix == ".safetensors":
        found = Weights(_safetensors(path), files=(path,))
    elif path.suffix in PICKLED:
        found = _pickled(path, under)
    elif path.suffix == ".gguf":
        raise refused(path, "GGUF holds blocks of quantised numbers; convert it to safetensors")
    else:
        raise refused(path, f"read are .safetensors, {INDEX} and {', '.join(PICKLED)}")
    return replace(found, tensors=_usable(path, found.tensors))


def refused(path: Path | str, why: str) -> UserError:
    return UserError(f"{path}: {why}", 2)


def files(place: str | Path) -> tuple[Path, ...]:
    """The files that the weights called `place` lie in. Raises UserError."""
    path = _file(Path(place))
    return (path, *_shards(path)[1]) if path.name.endswith(INDEX) else (path,)


def _file(path: Path) -> Path:
    """A folder stands for the weights in it."""
    path = path.expanduser()
    if path.is_dir():
        names = ("model.safetensors", f"model.{INDEX}", "pytorch_model.bin")
        path = next((path / name for name in names if (path / name).is_file()), path)
        if path.is_dir():
            raise refused(path, f"a folder without {', '.join(names)}")
    if not path.exists():
        raise refused(path, "no such file")
    if not path.is_file():
        raise refused(path, "no regular file")
    return path


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise refused(path, f"no safetensors file ({' '.join(str(error).split())})") from error


def _shards(path: Path) -> tuple[dict[str, str], list[Path]]:
    """What an index says: tensor -> file; and the files, which lie beside it."""
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"{path.stat().st_size:,} bytes are no index")
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in where.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refused(path, f"no index of shards ({type(error).__name__}: {error})") from error
    if odd := next((n for n in names if Path(n).name != n or not n.endswith(".safetensors")), ""):
        raise refused(path, f"a shard is a .safetensors file beside the index, not {odd!r}")
    if lost := next((n for n in names if not (path.parent / n).is_file()), ""):
        raise refused(path, f"the shard {lost} is missing")
    return where, [path.parent / name for name in names]


def _sharded(path: Path) -> Weights:
    where, shards = _shards(path)
    held = {shard.name: _safetensors(shard) for shard in shards}
    if lost := next((name for name, shard in where.items() if name not in held[shard]), ""):
        raise refused(path, f"{where[lost]} has no {lost}")
    return Weights({name: held[shard][name] for name, shard in where.items()}, files=(path, *shards))


def _pickled(path: Path, under: str | None) -> Weights:
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise refused(path, f"a damaged archive ({error})") from error
        if size > path.stat().st_size + 4096:  # torch stores, and does not compress
            raise refused(path, f"{size:,} bytes are said to be in a file of {path.stat().st_size:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused(path, _code(error)) from error
    except (Exception, RecursionError) as error:  # whatever a file can make torch's reader stumble over
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        why = "TorchScript and tar archives hold code" if "weights_only" in line else f"{type(error).__name__}: {line}"
        raise refused(path, f"torch reads no weights from it ({why[:200]}); {CONVERT}") from error
    return _nested(path, content, under)


CONVERT = "where you trust it, save the weights alone: torch.save(model.state_dict(), FILE)"


def _code(error: Exception) -> str:
    """Why a pickle was not read, with what it names."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    named = named or re.search(r"(?:class|global|import) `?([a-z_]\w*\.[\w.]+)", str(error))
    what = f" ({named[1]})" if named else ""
    return f"holds more than tensors{what}: to load it would run code, and nothing was; {CONVERT}"


def _nested(path: Path, content: Any, under: str | None) -> Weights:
    """The first dictionary of tensors: the content itself, or under one of NESTED, in at most two steps."""
    way: list[str] = []
    if under is not None:
        for part in under.split("/"):
            if not isinstance(content, Mapping) or part not in content:
                offer = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
                raise refused(path, f"nothing is under {under}; there are {offer[:200]}")
            content, way = content[part], [*way, part]
    others: list[str] = []
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        found = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = [name for name in NESTED if isinstance(content.get(name), Mapping)]
        if found and not inner:
            said = [f"the weights under {'/'.join(way)} are read"] if way else []
            said += [f"{', '.join(others)} beside them are not read (--under)"] if others else []
            return Weights(found, tuple(said), files=(path,))
        if not inner:
            break
        others += inner[1:] if under is None else []
        content, way = content[inner[0]], [*way, inner[0]]
    keys = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else type(content).__name__
    raise refused(path, f"no tensors by name, nor under {', '.join(NESTED)}: it holds {keys or 'nothing'}")


def _usable(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as plain numbers. Raises UserError for one that says to be larger than what is stored of it."""
    if not tensors:
        raise refused(path, "holds no tensors")
    found = {}
    for name, tensor in tensors.items():
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex():
            raise refused(path, f"{name} is no plain tensor ({tensor.layout}, {tensor.device.type}, {tensor.dtype})")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise refused(path, f"{name} says to be {tuple(tensor.shape)}, and less than that is stored")
        found[name] = tensor.detach()
    return found


# Names


def wrapper(names: Collection[str]) -> str:
    """What all names of a file's tensors begin with because their network was wrapped: `module._orig_mod.`, say."""
    found = ""
    while part := next((p for p in WRAPPERS if names and all(k.startswith(found + p) for k in names)), ""):
        found += part
    return found


def unwrapped(found: Weights, wanted: Collection[str] = ()) -> Weights:
    """Without what wraps all names; then, where `wanted` names are not there, without the only prefix under which all
    of them are. Raises UserError for several."""
    tensors, prefix = found.tensors, wrapper(found.tensors)
    tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    if wanted and not any(name in tensors for name in wanted):
        probe = min(wanted)
        starts = [name.removesuffix(probe) for name in tensors if name.endswith(f".{probe}")]
        whole = [s for s in starts if all(s + name in tensors for name in wanted)]
        if len(whole) > 1:
            raise refused(found.files[0], f"several networks in one file ({', '.join(sorted(whole))}): --prefix")
        if whole:
            tensors = {n.removeprefix(whole[0]): t for n, t in tensors.items() if n.startswith(whole[0])}
            prefix += whole[0]
    if not prefix:
        return found
    return replace(found, tensors=tensors, prefix=prefix).noting(f"{prefix} is left out of its tensors' names")


def plain(found: Weights) -> Weights:
    """As any network of that architecture would have them: not wrapped, not parametrised."""
    return unwrapped(folded(found))


def of(state: Mapping[str, Any]) -> Weights:
    """A state dict's tensors, on the CPU."""
    tensors = {str(k): v.detach().cpu() for k, v in state.items() if isinstance(v, Tensor)}
    return Weights(tensors, files=(Path("the state dict"),))


def folded(found: Weights) -> Weights:
    """With the weights that parametrisations stand for: weight and spectral normalisation, of torch.nn.utils and of
    its parametrizations. What else there may be stays as it is."""
    tensors, made = dict(found.tensors), []
    for name in [*tensors]:
        if match := re.fullmatch(r"(.*?)parametrizations\.(\w+)\.original0", name):
            start = f"{match[1]}parametrizations.{match[2]}."
            parts, whole = (name, f"{start}original1"), match[1] + match[2]
        elif match := re.fullmatch(r"(.*)_g", name):
            parts, whole = (name, f"{match[1]}_v"), match[1]
        elif match := re.fullmatch(r"(.*?)parametrizations\.(\w+)\.original", name):
            start, whole = f"{match[1]}parametrizations.{match[2]}.", match[1] + match[2]
            parts = (name, f"{start}0._u", f"{start}0._v")
        elif match := re.fullmatch(r"(.*)_orig", name):
            parts, whole = (name, f"{match[1]}_u", f"{match[1]}_v"), match[1]
        else:
            continue
        if all(part in tensors for part in parts) and whole not in tensors:
            value = _value([tensors[part] for part in parts])
            if value is not None:
                made.append(whole)
                tensors = {k: v for k, v in tensors.items() if k not in parts} | {whole: value}
    if not made:
        return found
    return replace(found, tensors=tensors).noting(f"{len(made)} weights computed from their parametrisation")


def _value(parts: list[Tensor]) -> Tensor | None:
    """g v / |v| of (g, v), or W / sigma of (W, u, v); None for shapes that are neither."""
    parts = [part.float() for part in parts]
    if len(parts) == 2:
        size, direction = parts
        axes = [axis for axis, n in enumerate(size.shape) if n == 1]
        if size.dim() not in (0, direction.dim()):
            return None
        if size.dim() == 0 or len(axes) == size.dim():
            return size * direction / direction.norm()
        if size.dim() - len(axes) != 1:
            return None
        return size * direction / torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
    weight, u, v = parts
    if u.dim() != 1 or v.dim() != 1 or math.prod(weight.shape) != len(u) * len(v):
        return None
    axis = next((a for a, n in enumerate(weight.shape) if n == len(u)), None)
    if axis is None:
        return None
    rows = weight.movedim(axis, 0).reshape(len(u), -1)
    return weight / (u @ rows @ v)


def weighs(place: str | Path) -> int:
    """Bytes of the files that weights lie in."""
    return sum(os.stat(path).st_size for path in files(place))
