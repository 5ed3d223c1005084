"""CIFAR from the archives of its authors (Krizhevsky 2009), without TensorFlow and without unpickling.

The binary version is read: records of one label byte (CIFAR-100: coarse, then fine) and 3,072 bytes of pixels
in planes of red, green and blue.  The archive is compared with the digest that its authors publish.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxkd.data.streaming import Arrays

_PIXELS = 3 * 32 * 32


class Archive(NamedTuple):
    """What is published of an archive.

    Attributes:
      file: its name.
      md5: its digest, from https://www.cs.toronto.edu/~kriz/cifar.html.
      members: the files of each split, in order.
      label_bytes: before the pixels of a record; the last one is the label.
      records: in each file.
    """

    file: str
    md5: str
    members: dict[str, tuple[str, ...]]
    label_bytes: int
    records: dict[str, int]


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        {
            "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("cifar-10-batches-bin/test_batch.bin",),
        },
        1,
        {"train": 10_000, "test": 10_000},
    ),
    "cifar100": Archive(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        {"train": ("cifar-100-binary/train.bin",), "test": ("cifar-100-binary/test.bin",)},
        2,
        {"train": 50_000, "test": 10_000},
    ),
}


def find_archive(name: str, data_dir: str | Path | None) -> Path | None:
    """The archive of a data set in a folder; None if it is not there.

    Raises:
      FileNotFoundError: only the version for Python is there, which is made of pickles.
    """
    if data_dir is None or name not in ARCHIVES:
        return None
    wanted = ARCHIVES[name].file
    if (found := Path(data_dir) / wanted).is_file():
        return found
    pickled = Path(data_dir) / wanted.replace("-binary", "-python")
    if pickled.is_file() and not (Path(data_dir) / name).is_dir():
        raise FileNotFoundError(
            f"{pickled} is made of pickles, that is, of programs, and is not read; put the binary version "
            f"beside it: https://www.cs.toronto.edu/~kriz/{wanted}"
        )
    return None


def read_archive(name: str, path: Path) -> dict[str, Arrays]:
    """Reads CIFAR from its archive; the order is the authors' own.

    Args:
      name: "cifar10" or "cifar100".
      path: the archive.

    Returns:
      The splits "train" and "test".

    Raises:
      OSError: it cannot be read.
      ValueError: it is not the file that the authors publish.
    """
    about = ARCHIVES[name]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, _md5).hexdigest()
    if found != about.md5:
        raise ValueError(
            f"{path} is damaged or another file: its MD5 is {found}, and that of the authors' file "
            f"{about.md5}; download it again from https://www.cs.toronto.edu/~kriz/{about.file}"
        )
    wanted = {member: about.records[split] for split, members in about.members.items() for member in members}
    size, parts = about.label_bytes + _PIXELS, {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name in wanted and (opened := archive.extractfile(member)) is not None:
                contents = opened.read(wanted[member.name] * size)
                parts[member.name] = np.frombuffer(contents, np.uint8).reshape(wanted[member.name], size)
    return {
        split: _examples(np.concatenate([parts[member] for member in members]), about.label_bytes)
        for split, members in about.members.items()
    }


def _examples(records: np.ndarray, label_bytes: int) -> Arrays:
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int32))


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)
