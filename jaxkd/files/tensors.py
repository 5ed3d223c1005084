"""Builds arrays of what a pickle said, after it has ended and against the bytes that are really there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxkd.files import limits
from jaxkd.files.pickles import Inert, Name, NumpyScalar, NumpyType, Storage, Tensor

# Of each kind of storage: the type of its numbers, in native order.
DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",  # widened to float32
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
}
Order = Literal["<", ">"]
_SCALARS = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))


def width(storage: Storage) -> int:
    """Bytes of one number of a storage."""
    return np.dtype(DTYPES[storage.kind]).itemsize


class Builder:
    """Makes plain values of the records of one pickle, each once, however often it is used."""

    def __init__(self, read_storage: Callable[[Storage], bytes | bytearray], order: Order = "<") -> None:
        """`read_storage` gives the bytes of a storage, in byte order `order`."""
        self._read_storage, self._order = read_storage, order
        self._done: dict[int, tuple[Any, int, int]] = {}
        self._open: set[int] = set()
        self._numbers: dict[str, np.ndarray] = {}
        self._views: dict[str, np.ndarray] = {}
        self._held = self._named = 0

    def __call__(self, value: Any) -> Any:
        """The value, its tensors as arrays.

        Raises:
          ValueError: a tensor reaches beyond its storage, or the value is beyond the limits.
        """
        return self._build(value, 0)[0]

    def _build(self, value: Any, depth: int) -> tuple[Any, int, int]:
        """The value, how deep it is nested, and how many values it would be if none were shared."""
        if isinstance(value, Tensor):
            return self._array(value), 1, 1
        if isinstance(value, NumpyScalar):
            return _number(value), 1, 1
        if isinstance(value, NumpyType):
            return Inert(f"numpy.dtype({value.code})"), 1, 1
        if isinstance(value, (Name, Storage)):
            return Inert(str(value) if isinstance(value, Name) else "storage"), 1, 1
        if not isinstance(value, (dict, list, tuple)):
            return value, 1, 1
        # By identity, which holds as long as the pickle's value lives: the caller keeps it.
        key = id(value)
        if key not in self._done:
            if key in self._open:
                raise ValueError("a container holds itself")
            if depth >= limits.NESTING:
                raise ValueError(f"containers are nested deeper than {limits.NESTING}")
            self._open.add(key)
            parts = [
                self._build(part, depth + 1)
                for part in (value.values() if isinstance(value, dict) else value)
            ]
            self._open.remove(key)
            height = 1 + max((part[1] for part in parts), default=0)
            count = 1 + sum(part[2] for part in parts)
            if height > limits.NESTING or count > limits.UNROLLED_VALUES:
                raise ValueError(
                    f"containers are nested {height} deep with {count:,} values; at most {limits.NESTING} "
                    f"and {limits.UNROLLED_VALUES:,} are read"
                )
            built = [part[0] for part in parts]
            whole: Any = (
                dict(zip(value, built, strict=True)) if isinstance(value, dict) else type(value)(built)
            )
            self._done[key] = whole, height, count
        return self._done[key]

    def _array(self, tensor: Tensor) -> np.ndarray:
        # A text, whose hash no file can foresee; of numbers it could make many that collide.
        key = repr(tensor)
        if key not in self._views:
            self._views[key] = self._view(tensor)
        return self._views[key]

    def _view(self, tensor: Tensor) -> np.ndarray:
        numbers, size = self._storage(tensor.storage), tensor.size
        if not math.prod(size):
            return np.zeros(size, numbers.dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(size, tensor.stride, strict=True))
        if tensor.offset + span > numbers.size or math.prod(size) > numbers.size:
            raise ValueError("a tensor reaches beyond its storage")
        self._named += math.prod(size) * numbers.itemsize
        if self._named > limits.SHARED_RATIO * self._held + limits.MIB:
            raise ValueError(
                f"the tensors name more than {limits.SHARED_RATIO} times the {self._held:,} bytes of their "
                "storages"
            )
        steps = [step * numbers.itemsize if n > 1 else 0 for n, step in zip(size, tensor.stride, strict=True)]
        # NumPy compares the reach with the buffer once more.
        return np.ndarray(size, numbers.dtype, numbers.data, tensor.offset * numbers.itemsize, steps)

    def _storage(self, storage: Storage) -> np.ndarray:
        if storage.key not in self._numbers:
            dtype = np.dtype(DTYPES[storage.kind])
            raw = self._read_storage(storage)
            if len(raw) != storage.count * dtype.itemsize:
                raise ValueError(
                    f"storage {storage.key[:100]!r} holds {len(raw):,} bytes instead of {storage.count:,} "
                    f"values of {dtype.itemsize}"
                )
            numbers = np.frombuffer(raw, dtype.newbyteorder(self._order)).astype(dtype, copy=False)
            if storage.kind == "BFloat16Storage":
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            self._held += numbers.nbytes
            self._numbers[storage.key] = numbers
        return self._numbers[storage.key]


def _number(scalar: NumpyScalar) -> Any:
    """A NumPy number as Python's own; one of an unusual type as a record."""
    code, order = scalar.dtype.code, scalar.dtype.order
    if code not in _SCALARS:
        return Inert(f"numpy.dtype({code[:100]})")
    dtype = np.dtype(code).newbyteorder(">" if order == ">" else "<")
    if len(scalar.data) != dtype.itemsize:
        raise ValueError(f"a NumPy number of type {code} has {len(scalar.data)} bytes")
    return np.frombuffer(scalar.data, dtype)[0].item()
