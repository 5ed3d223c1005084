"""Reads `.npz` files: arrays of numbers or text alone, never pickled objects, within limits.

NumPy's own reader makes an array of the size that a header declares before it looks for the bytes; here they
are compared first.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from jaxkd.files import archives, limits
from jaxkd.files.places import place
from jaxkd.files.whole import raise_if_not_damage

_KINDS = "biufcSUmM"  # numbers, text, dates: whatever has a fixed size and refers to nothing


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` file.

    Returns:
      Arrays by name, of the types and byte orders that the file has.

    Raises:
      OSError: the file cannot be read, or memory is short.
      ValueError: it is damaged, holds objects, or asks for more than docs/teachers.md allows.
    """
    path = place(path)
    try:
        with path.open("rb") as file, archives.opened(file) as archive:
            return read_members(archive)
    except Exception as error:
        raise_if_not_damage(error, path)
        raise ValueError(
            f"{path} cannot be read as an .npz file ({type(error).__name__}: {error})"
        ) from error


def read_members(archive: archives.Archive) -> dict[str, np.ndarray]:
    """The arrays of an archive that is open; what is not an array is left out."""
    return {
        name.removesuffix(".npy"): _array(name, archive.read(name))
        for name in archive
        if name.endswith(".npy")
    }


def _array(name: str, contents: bytearray) -> np.ndarray:
    file = io.BytesIO(contents[: limits.NPY_HEADER_BYTES + 12])
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file, limits.NPY_HEADER_BYTES)
    elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(file, limits.NPY_HEADER_BYTES)
    else:
        raise ValueError(f"{name} is of .npy version {version}; 1.0 and 2.0 are read")
    shape, fortran_order, dtype = header
    if dtype.kind not in _KINDS or dtype.subdtype is not None or dtype.itemsize == 0:
        raise ValueError(f"{name} is of type {dtype}; only arrays of numbers or text are read")
    if len(shape) > limits.DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"{name} has the shape {shape}")
    start, count = file.tell(), math.prod(shape)
    if count * dtype.itemsize != len(contents) - start:
        raise ValueError(
            f"{name} declares {count:,} values of {dtype.itemsize} bytes and holds "
            f"{len(contents) - start:,} bytes"
        )
    if not count:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(contents, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran_order else "C")
