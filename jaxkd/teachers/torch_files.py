"""Reads PyTorch files, `.safetensors` and `.npz`, executing nothing in them, and writes `.safetensors`.

The first bytes of a file identify its format, not its name.  A PyTorch file is a pickle, that is, a program:
`jaxkd.files.pickles` interprets the few instructions that tensors need, and refuses the others by name.  The
limits on memory and time are in `jaxkd.files.limits`.  PyTorch is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from jaxkd.files import archives, limits, npz, pickles, tensors, whole
from jaxkd.files.pickles import ForbiddenError
from jaxkd.files.places import place

ACCEPTED = "a PyTorch file of tensors (.pt, .pth, .th, .tar, .bin, .ckpt), .safetensors or .npz"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP, _PICKLE = (b"PK\x03\x04", b"PK\x05\x06"), b"\x80"
# Other files often found under a weights file's name, by their first bytes.
_OTHERS = {
    b"\x89HDF": "it is an HDF5 file (Keras); load it there and save its arrays with numpy.savez",
    b"version https://git-lfs": "it is a Git LFS pointer and not the file itself; type: git lfs pull",
    b"<": "it is a web page and not the file itself; download the file again",
}


def read(path: str | Path) -> dict[str, Any]:
    """Reads a weights file into a dictionary of NumPy arrays, nested as in the file.

    Args:
      path: a PyTorch file (zip or older container), `.safetensors`, or `.npz`, with any ending.

    Returns:
      The file's dictionary; bfloat16 tensors become float32.  Arrays of a PyTorch file may share memory.
      Besides arrays there are plain values, and `jaxkd.files.pickles.Inert` for all other objects.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be read, or there is not enough memory.
      ValueError: it is another kind of file, is damaged, contains more than tensors and plain values, or
        exceeds the limits in docs/teachers.md.
    """
    path = place(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected {ACCEPTED}")
    with whole.fetched(path) as there:
        return _read(there)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            contents = _reader(file)(file)
    except ForbiddenError as error:
        raise ValueError(f"refused to read {path}: {error}") from None
    except Exception as error:
        whole.raise_if_not_damage(error, path)
        raise ValueError(
            f"{path} is damaged or not a file of weights ({type(error).__name__}: {_brief(error)}); "
            "download it again and compare its checksum with the publisher's"
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(
            f"{path} holds a {type(contents).__name__}, not a dictionary of tensors; "
            "save model.state_dict() rather than the model"
        )
    return contents


def write(path: str | Path, weights: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a `.safetensors` file atomically; the same weights and texts give the same bytes.

    Args:
      path: the output file; folders are created, and an existing file is replaced.
      weights: arrays by torch name.
      metadata: texts by name, for `read_metadata`.

    Raises:
      ValueError: the file does not end in .safetensors.
    """
    path = place(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"cannot write {path.name}: the ending must be .safetensors")
    contents = safetensors.numpy.save({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)})
    # The library's order of metadata changes from process to process.
    start = 8 + int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8:start])
    texts = dict(sorted({"format": "pt", **metadata}.items()))
    encoded = json.dumps({"__metadata__": texts, **header}, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # arrays begin at multiples of eight bytes
    whole.write_bytes(path, len(encoded).to_bytes(8, "little") + encoded + contents[start:])


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata texts of a `.safetensors` file; none for other files.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged.
    """
    path = place(path)
    if not path.is_file():
        return {}
    with whole.fetched(path) as there:
        return _read_metadata(there)


def _read_metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        if not _is_safetensors(file):
            return {}
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            return opened.metadata() or {}
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {_brief(error)})") from error


def _reader(file: BinaryIO) -> Callable[[BinaryIO], Any]:
    """The reader for a file, chosen by its first bytes."""
    if _is_safetensors(file):
        return _read_safetensors
    file.seek(0)
    first = file.read(64)
    if first.startswith(_ZIP):
        return _read_zip
    if first.startswith(_PICKLE):
        return _read_legacy
    for beginning, what in _OTHERS.items():
        if first.lstrip().startswith(beginning):
            raise ForbiddenError(what)
    raise ValueError(f"it begins with {first[:8]!r}; accepted is {ACCEPTED}")


def _is_safetensors(file: BinaryIO) -> bool:
    """Whether a file begins with the size of a header, and the header with a brace."""
    size = file.seek(0, 2)
    file.seek(0)
    first = file.read(9)
    return len(first) == 9 and first[8:] == b"{" and int.from_bytes(first[:8], "little") <= size - 8


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    file.seek(0)
    if (size := int.from_bytes(file.read(8), "little")) > limits.SAFETENSORS_HEADER_BYTES:
        raise ValueError(
            f"its header has {size:,} bytes; at most {limits.SAFETENSORS_HEADER_BYTES:,} are read"
        )
    # The library refuses arrays that overlap, leave gaps or reach beyond the file.
    arrays = safetensors.numpy.load_file(file.name)
    return {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in arrays.items()
    }


def _read_zip(file: BinaryIO) -> Any:
    with archives.opened(file) as archive:
        names = list(archive)
        # TorchScript stores its constants next to its data.
        if any(name.rpartition("/")[2] in ("constants.pkl", "model.json") for name in names):
            raise ForbiddenError(
                "it is a TorchScript archive, which holds a program; in PyTorch, make a file that can be "
                'imported with torch.save(torch.jit.load(FILE).state_dict(), "weights.pt")'
            )
        pickled = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if not pickled and any(name.endswith(".npy") for name in names):
            return npz.read_members(archive)
        if len(pickled) != 1:
            raise ValueError(f"the archive holds {len(pickled)} members named data.pkl, and no .npy")
        root = pickled[0].removesuffix("data.pkl")
        order: tensors.Order = "<"
        if f"{root}byteorder" in archive:
            orders: dict[bytes, tensors.Order] = {b"little": "<", b"big": ">"}
            order = orders[bytes(archive.read(f"{root}byteorder"))]
        weights = pickles.load(bytes(archive.read(pickled[0])))
        build = tensors.Builder(lambda storage: archive.read(f"{root}data/{storage.key}"), order)
        return build(weights.value)


def _read_legacy(file: BinaryIO) -> Any:
    """The container of PyTorch before 1.6: five pickles, then the raw storages, always little-endian."""
    file.seek(0)
    contents = file.read()
    first = pickles.load(contents)
    if first.value != _LEGACY_MAGIC:
        raise ValueError("the magic number is missing")
    version = pickles.load(contents, first.end)
    machine = pickles.load(contents, version.end)
    weights = pickles.load(contents, machine.end)
    keys = pickles.load(contents, weights.end)
    if not isinstance(keys.value, list) or not set(map(type, keys.value)) <= {str}:
        raise ValueError("the list of storages is missing")
    places: dict[str, slice] = {}
    at = keys.end
    for key in keys.value:
        if key in places or key not in weights.storages:
            raise ValueError(f"storage {key[:100]!r} is duplicated or unused")
        storage = weights.storages[key]
        if int.from_bytes(contents[at : at + 8], "little") != storage.count:
            raise ValueError(
                f"storage {key[:100]!r} does not hold the {storage.count:,} values that it should"
            )
        places[key] = slice(at + 8, at + 8 + storage.count * tensors.width(storage))
        at = places[key].stop
    if at > len(contents):
        raise ValueError(f"{at - len(contents):,} bytes are missing at the end")
    return tensors.Builder(lambda storage: contents[places[storage.key]])(weights.value)


def _brief(error: BaseException) -> str:
    return str(error)[:500]
