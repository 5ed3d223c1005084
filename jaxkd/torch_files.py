"""Reads PyTorch files, `.safetensors` and `.npz`, executing nothing in them, and writes `.safetensors`.

A `.pt` file is a pickle, that is, a program.  The reader here runs it with a table of the four or five
harmless constructors that a file of tensors needs; anything else in it is refused by name.  PyTorch is not
needed.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from jaxkd.storage import write_bytes

SUFFIXES = (".pt", ".pth", ".th", ".safetensors", ".npz")

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "BFloat16Storage": "bfloat16",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read(path: str | Path) -> dict[str, Any]:
    """Reads a file of weights into a dictionary of NumPy arrays, nested as the file has it.

    Args:
      path: `.pt`, `.pth` or `.th` (zip or older container), `.safetensors`, or `.npz`.

    Returns:
      The file's dictionary; bfloat16 tensors come as float32.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another kind of file, a damaged one, or one that holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected one of {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot read {path.name}: the ending must be one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix == ".safetensors":
            arrays = safetensors.numpy.load_file(path)
            return {name: _readable(array) for name, array in arrays.items()}
        with path.open("rb") as file:
            contents = _read_zip(file) if zipfile.is_zipfile(path) else _read_legacy(file)
    except _ForbiddenError as error:
        raise ValueError(f"refused to read {path}: {error}") from None
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a {path.suffix} file of weights ({type(error).__name__}: {error}); "
            "download it again and compare its checksum with the publisher's"
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(
            f"{path} holds a {type(contents).__name__}, not a dictionary of tensors; "
            "save model.state_dict() rather than the model"
        )
    return contents


def write(path: str | Path, weights: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a `.safetensors` file, whole or not at all.

    Args:
      path: where; folders are made, and a file that is there is replaced.
      weights: arrays by torch name.
      metadata: texts by name, for `read_metadata`.

    Raises:
      ValueError: the ending is another.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"cannot write {path.name}: the ending must be .safetensors")
    arrays = {name: np.ascontiguousarray(weight) for name, weight in weights.items()}
    write_bytes(path, safetensors.numpy.save(arrays, {"format": "pt", **metadata}))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that a `.safetensors` file carries beside its weights; none for other files.

    Raises:
      ValueError: the file is damaged.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error


class _ForbiddenError(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    """Runs a pickle with an allow-list of constructors; `load_storage` resolves persistent ids."""

    def __init__(self, file: BinaryIO | io.BytesIO, load_storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self.persistent_load = load_storage  # type: ignore[method-assign]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        raise _ForbiddenError(
            f"it asks for {module}.{name}, which is not needed for weights and could run code; "
            "save model.state_dict() alone and import that"
        )


class _Storage:
    """The flat numbers behind tensors; made by the readers below only, never by what is in the file."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """Copies a tensor out of its storage, without trusting a single number of the file."""
    if type(storage) is not _Storage:
        raise _ForbiddenError("a tensor is built of something that is not a storage")
    for value in (offset, *size, *stride):
        if type(value) is not int or value < 0:
            raise ValueError("an offset, size or stride is not a whole number from 0")
    span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0
    if offset + span > storage.numbers.size or math.prod(size) > storage.numbers.size:
        raise ValueError("a tensor reaches beyond its storage")
    strides = tuple(s * storage.numbers.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage.numbers[offset:], size, strides).copy()


def _dtype_of(constructor: Any) -> Any:
    if not any(constructor is known for known in _DTYPES.values()):
        raise _ForbiddenError("a storage is of an unknown type")
    return constructor


def _readable(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _as_array(data: bytes, dtype: Any) -> np.ndarray:
    if dtype != "bfloat16":
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        index = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        root = index.removesuffix("data.pkl")

        def load_storage(persistent_id: Any) -> _Storage:
            _, constructor, key, _, count = persistent_id
            array = _as_array(archive.read(f"{root}data/{key}"), _dtype_of(constructor))
            if array.size != count:
                raise ValueError(f"storage {key} holds {array.size} values instead of {count}")
            return _Storage(array)

        return _Unpickler(io.BytesIO(archive.read(index)), load_storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """The container of PyTorch before 1.6: pickles one after the other, then the raw storages."""

    def plain(_: Any) -> Any:
        raise _ForbiddenError("it refers to a storage in its header")

    if _Unpickler(file, plain).load() != _LEGACY_MAGIC:
        raise ValueError("the magic number is missing")
    _Unpickler(file, plain).load()  # protocol version
    if not _Unpickler(file, plain).load().get("little_endian", True) or sys.byteorder != "little":
        raise ValueError("big-endian files are not supported")

    length = os.fstat(file.fileno()).st_size
    declared: dict[str, tuple[Any, int]] = {}
    storages: dict[str, np.ndarray] = {}

    def load_storage(persistent_id: Any) -> _Storage:
        _, constructor, key, _, count, view = persistent_id
        if view is not None:
            raise ValueError("views of storages are not supported")
        if type(count) is not int or not 0 <= count <= length:
            raise ValueError(f"storage {key} is larger than the file")
        declared[key] = (_dtype_of(constructor), count)
        return _Storage(storages[key] if key in storages else np.zeros(count, np.int8))

    # The numbers come after the pickle that refers to them: a first pass learns the storages' types and
    # sizes, a second one builds the tensors.
    start = file.tell()
    _Unpickler(file, load_storage).load()
    for key in _Unpickler(file, plain).load():
        dtype, count = declared[key]
        if int.from_bytes(_exactly(file, 8), "little") != count:
            raise ValueError(f"storage {key} does not hold the {count} values that it should")
        width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        storages[key] = _as_array(_exactly(file, count * width), dtype)
    file.seek(start)
    return _Unpickler(file, load_storage).load()


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"{count - len(data)} bytes are missing at the end")
    return data
