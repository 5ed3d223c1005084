"""CIFAR from the archives of its authors (Krizhevsky 2009), without TensorFlow and without unpickling.

An archive is compared with the digest that its authors publish.  The binary version holds records of one
label byte (CIFAR-100: coarse, then fine) and 3,072 bytes of pixels in planes of red, green and blue.  The
version for Python, which torchvision downloads, holds pickles: their instructions are walked through for the
two constants that are wanted, and none is executed.
"""

from __future__ import annotations

import hashlib
import pickletools
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxkd.data.datasets import measure
from jaxkd.data.streaming import Arrays
from jaxkd.files.places import place

_PIXELS = 3 * 32 * 32
_INTEGERS = ("BININT1", "BININT2", "BININT", "INT")


class Archive(NamedTuple):
    """What is published of an archive.

    Attributes:
      file: its name.
      md5: its digest, from https://www.cs.toronto.edu/~kriz/cifar.html.
      members: the files of each split, in order.
      records: how many images each of them holds.
      read: from a file's contents and that number to images `[N, 3072]` and labels.
      mean: of the training images' channels, of pixels in [0, 1].
    """

    file: str
    md5: str
    members: dict[str, tuple[str, ...]]
    records: dict[str, int]
    read: Callable[[bytes, int], tuple[np.ndarray, np.ndarray]]
    mean: tuple[float, ...]


def _records(label_bytes: int) -> Callable[[bytes, int], tuple[np.ndarray, np.ndarray]]:
    """Reads the binary version; the last of the label bytes is the label."""

    def read(contents: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.frombuffer(contents, np.uint8).reshape(count, label_bytes + _PIXELS)
        return rows[:, label_bytes:], rows[:, label_bytes - 1]

    return read


def _pickled(key: str) -> Callable[[bytes, int], tuple[np.ndarray, np.ndarray]]:
    """Reads the version for Python: the one text as long as all pixels, and the integers after a key."""

    def read(contents: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels, wanted = b"", [], False
        for instruction, argument, _ in pickletools.genops(contents):
            if isinstance(argument, str | bytes):
                if len(argument) == count * _PIXELS:
                    images = argument.encode("latin1") if isinstance(argument, str) else argument
                wanted = argument in (key, key.encode())
            elif wanted and instruction.name in _INTEGERS:
                labels.append(argument)
        return np.frombuffer(images, np.uint8).reshape(count, _PIXELS), np.array(labels).reshape(count)

    return read


_TEN = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_HUNDRED = {"train": ("train",), "test": ("test",)}


def _in(folder: str, names: Mapping[str, tuple[str, ...]], ending: str) -> dict[str, tuple[str, ...]]:
    return {split: tuple(f"{folder}/{name}{ending}" for name in found) for split, found in names.items()}


_MEAN_TEN, _MEAN_HUNDRED = (0.4914, 0.4822, 0.4465), (0.5071, 0.4865, 0.4409)
_COUNTS_TEN, _COUNTS_HUNDRED = {"train": 10_000, "test": 10_000}, {"train": 50_000, "test": 10_000}
# By preference.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "cifar10": (
        Archive(
            "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
            _in("cifar-10-batches-bin", _TEN, ".bin"), _COUNTS_TEN, _records(1), _MEAN_TEN,
        ),
        Archive(
            "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
            _in("cifar-10-batches-py", _TEN, ""), _COUNTS_TEN, _pickled("labels"), _MEAN_TEN,
        ),
    ),
    "cifar100": (
        Archive(
            "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8",
            _in("cifar-100-binary", _HUNDRED, ".bin"), _COUNTS_HUNDRED, _records(2), _MEAN_HUNDRED,
        ),
        Archive(
            "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85",
            _in("cifar-100-python", _HUNDRED, ""), _COUNTS_HUNDRED, _pickled("fine_labels"), _MEAN_HUNDRED,
        ),
    ),
}  # fmt: skip


def find_archive(name: str, data_dir: str | Path | None) -> tuple[Path, Archive] | None:
    """The archive of a data set in a folder, and what is published of it; None if it is not there."""
    for about in ARCHIVES.get(name, ()):
        if data_dir is not None and (path := place(data_dir) / about.file).is_file():
            return path, about
    return None


def read_archive(path: Path, about: Archive) -> dict[str, Arrays]:
    """Reads CIFAR from an archive; the order is the authors' own.

    Args:
      path: the archive.
      about: what is published of it.

    Returns:
      The splits "train" and "test".

    Raises:
      OSError: it cannot be read.
      ValueError: it is not the file that the authors publish.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, _md5).hexdigest()
    if found != about.md5:
        raise ValueError(
            f"{path} is damaged or another file: its MD5 is {found}, and that of the authors' file "
            f"{about.md5}; download it again from https://www.cs.toronto.edu/~kriz/{about.file}"
        )
    counts = {member: about.records[split] for split, members in about.members.items() for member in members}
    parts = {}
    with path.open("rb") as file, tarfile.open(fileobj=file) as archive:
        for member in archive:
            if member.name in counts and (opened := archive.extractfile(member)) is not None:
                parts[member.name] = about.read(opened.read(), counts[member.name])
    splits = {}
    for split, members in about.members.items():
        rows = np.concatenate([parts[member][0] for member in members])
        labels = np.concatenate([parts[member][1] for member in members])
        images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        splits[split] = Arrays(images, labels.astype(np.int32))
    mean, _ = measure(splits["train"].images)
    if not np.allclose(mean, about.mean, atol=1e-3):
        raise ValueError(
            f"{path} was not read rightly: the mean is {mean} instead of {about.mean}; report this"
        )
    return splits


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)
