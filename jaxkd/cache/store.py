"""The teacher's logits on disk, by example and view: stored, looked up, and verified.

Only NumPy and files here; the numbers come from `jaxkd.cache.compute`.  A cache is a folder:

    cache.json        the teacher, the data, the views and the precision of the logits
    codes.bin         int64, one for each row: example id * number of views + number of the view
    logits.bin        the rows, [rows, classes], or [rows, classes + pooled features]
    segments.jsonl    one line for each written segment of rows: its position, and its digest

Rows are only appended, and a line is added after its rows are on the disk, so a kill at any time leaves a
valid, shorter cache.  Segments are verified when a cache is opened: the rows of a damaged one count as
missing, and are computed again.  A segment's digest also covers cache.json, so rows are never mistaken for
another teacher's, and a damaged or lost cache.json can be rebuilt.

A cache in a bucket is cache.json and, for each segment, an object `segments/DIGEST` with its codes and then
its rows.  They are copied once into a folder under `~/.cache/jaxkd`, which is a cache as above.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd._paths import cache_folder
from jaxkd.differences import describe_differences, differing_keys
from jaxkd.files import records, whole
from jaxkd.files.leases import Lease
from jaxkd.files.places import BucketPath
from jaxkd.storage import DamagedError, write_text

logger = logging.getLogger("jaxkd")

_FORMAT = 3
_ABOUT, _CODES, _LOGITS, _SEGMENTS = "cache.json", "codes.bin", "logits.bin", "segments.jsonl"
DTYPES = ("float16", "bfloat16", "float32")
DEFAULT_DTYPE = "float16"
_SCHEMA = records.Schema(
    "cache.json",
    {
        "format": records.whole_number(_FORMAT, _FORMAT),
        "key": records.OBJECT,
        "dtype": records.Field(", ".join(DTYPES), lambda value: value in DTYPES),
    },
    checksum="sha256",
)


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """Everything that a row of logits depends on, besides example and view.

    Attributes:
      teacher: the digest of its variables.
      model: its architecture, with options.
      mean: the mean of each channel, for the normalisation of its inputs.
      std: the standard deviation of each channel.
      split: the name of the examples' split.
      images: the digest of their pixels.
      num_examples: the number of examples.
      num_classes: the number of logits per row.
      augmentation: the augmentation of the view, as text.
      pooled: the number of pooled features after the logits in a row; 0 for none.
    """

    teacher: str
    model: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    split: str
    images: str
    num_examples: int
    num_classes: int
    augmentation: str
    pooled: int = 0

    @property
    def digest(self) -> str:
        """A short hash, for the name of a folder."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:12]


class TeacherCache:
    """An open cache.

    Attributes:
      folder: the cache's folder.
      dtype: the precision of the stored logits, one of `DTYPES`.
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        """Opens and verifies a cache.  One that holds pooled features serves a key without them.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is of another teacher, dataset or kind of view, or of an unknown format.
          DamagedError: its cache.json is damaged; `create` rebuilds it.
        """
        about = _read_about(folder)
        if not key.pooled:
            key = dataclasses.replace(key, pooled=about["key"].get("pooled", 0))
        if different := differing_keys(about["key"], dataclasses.asdict(key)):
            raise ValueError(
                f"the teacher cache {folder} does not fit; {describe_differences(different)}. "
                "Build one that does with `jaxkd cache`"
            )
        self._begin(folder, key, about["dtype"])
        self._read()

    def _begin(self, folder: Path, key: CacheKey, dtype: str) -> None:
        self.folder = folder
        self.dtype = dtype
        self._about = _about(key, dtype)
        self._files = self._mirror() if isinstance(folder, BucketPath) else folder
        self._num_classes, self._width = key.num_classes, key.num_classes + key.pooled
        self._segments: list[dict[str, Any]] = []

    @classmethod
    def create(cls, folder: Path, key: CacheKey, dtype: str | None = None) -> TeacherCache:
        """Opens the cache in a folder, or creates an empty one, of precision `dtype` or `DEFAULT_DTYPE`.

        A damaged or lost cache.json is rebuilt, if there are rows that belong to it.

        Raises:
          ValueError: the folder holds a cache of another key or precision, or unknown rows.
        """
        if (os.path.lexists(folder) or folder.exists()) and not folder.is_dir():
            raise ValueError(f"{folder} is a file; name a folder, or move the file away")
        try:
            cache = cls(folder, key)
        except (FileNotFoundError, DamagedError) as error:
            found = cls._precision_of_rows(folder, key, error)
            if found is not None:
                logger.warning("%s; it was rebuilt, since there are rows that belong to it", error)
            if os.path.lexists(folder / _ABOUT) or (folder / _ABOUT).exists():
                if found is None:
                    raise ValueError(
                        f"{folder / _ABOUT} is damaged, or not of a cache, and there are no rows; remove it, "
                        "or name another folder"
                    ) from None
                records.set_aside(folder / _ABOUT)
            if found is None and (others := _rows_without_lines(folder)):
                raise ValueError(
                    f"{folder} has {' and '.join(others)}, which are not of a teacher cache, or of one that "
                    "has lost the files that describe it; move them away, or name another folder"
                ) from None
            records.write(folder / _ABOUT, _SCHEMA, _about(key, found or dtype or DEFAULT_DTYPE))
            cache = cls(folder, key)
        if dtype not in (None, cache.dtype):
            raise ValueError(
                f"the teacher cache {folder} holds {cache.dtype}, not {dtype}; use that, or choose another "
                "folder"
            )
        return cache

    @classmethod
    def _precision_of_rows(cls, folder: Path, key: CacheKey, error: Exception) -> str | None:
        """The precision of the rows in a folder without cache.json; None if there are none."""
        lines = _lines(folder / _SEGMENTS)
        for dtype in DTYPES:
            cache = cls.__new__(cls)
            cache._begin(folder, key, dtype)
            for line in lines:
                with contextlib.suppress(*_DAMAGE):
                    cache._verified(line, set())
                    return dtype
        if lines:
            raise ValueError(
                f"{error}. The rows there do not belong to this teacher and these data, or are damaged too; "
                f"move {folder} away, or name another"
            )
        return None

    def __len__(self) -> int:
        """Number of rows, without damaged ones."""
        return len(self._codes)

    @property
    def has_pooled(self) -> bool:
        """Whether a row holds pooled features after the logits."""
        return self._width > self._num_classes

    @property
    def num_bytes(self) -> int:
        """Size of the logits on disk."""
        return self._end * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Size of one row of logits."""
        return self._width * np.dtype(self.dtype).itemsize

    def missing(self, codes: np.ndarray) -> np.ndarray:
        """The codes that have no row, sorted and unique."""
        wanted = np.unique(codes)
        return wanted[self._find(wanted) < 0]

    def locate(self, codes: np.ndarray) -> np.ndarray:
        """The rows of some codes, int64 of the same shape.

        Raises:
          ValueError: some codes have no row.
        """
        rows = self._find(codes)
        if absent := int((rows < 0).sum()):
            raise ValueError(
                f"the teacher cache {self.folder} lacks {absent:,} of {rows.size:,} views; `jaxkd cache` "
                "computes them (or --cache fill, while training)"
            )
        return rows

    def _find(self, codes: np.ndarray) -> np.ndarray:
        if not len(self._codes):
            return np.full(codes.shape, -1)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[places] == codes, self._rows[places], -1)

    def fetch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logits `[..., K]` and pooled features `[..., D]` of some rows, in the stored precision.

        D is 0 without such features.
        """
        logits, pooled = np.split(self._logits[rows], [self._num_classes], axis=-1)
        return logits, pooled

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Locks out other writers; drops everything after the last good segment.

        Raises:
          BusyError: another process is writing.
        """
        with self._alone():
            self._read()
            with self._changing():
                self._trim()
            yield

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if isinstance(self.folder, BucketPath):
            with contextlib.closing(Lease(self.folder / ".lock", f"the teacher cache {self.folder}")):
                yield
            return
        with (self.folder / ".lock").open("w") as lock:
            whole.lock(
                lock,
                f"another process is filling the teacher cache {self.folder}; wait for it, or choose "
                "another folder",
            )
            yield

    def _trim(self) -> None:
        """Drops everything after the last good segment."""
        lines = [json.dumps(segment) + "\n" for segment in self._segments]
        write_text(self._files / _SEGMENTS, "".join(lines))
        for name, size in ((_CODES, 8), (_LOGITS, self.row_bytes)):
            with (self._files / name).open("ab") as file:
                file.truncate(self._end * size)

    def append(self, codes: np.ndarray, logits: np.ndarray) -> None:
        """Adds rows, inside `writing`.

        Args:
          codes: int64, `[R]`.
          logits: `[R, K]`, in the stored precision; or `[R, K + D]`, with pooled features.
        """
        if logits.shape != (len(codes), self._width) or logits.dtype != self.dtype:
            raise ValueError(
                f"logits must be {self.dtype} {[len(codes), self._width]}, "
                f"got {logits.dtype} {list(logits.shape)}"
            )
        codes = np.ascontiguousarray(codes, np.int64)
        digest = self._digest(codes, logits)
        with self._changing():
            if self._objects is not None:
                (self._objects / digest).put(codes.tobytes() + logits.tobytes())
            self._add(codes, logits, digest)
        rows = self._segments[-1]["start"] + np.arange(len(codes))
        self._index([self._codes, codes], [self._rows, rows])

    def _add(self, codes: np.ndarray, logits: np.ndarray, digest: str) -> None:
        segment: dict[str, Any] = {"start": self._end, "rows": len(codes), "sha256": digest}
        for name, part in ((_CODES, codes), (_LOGITS, logits)):
            _append(self._files / name, part.tobytes())
        _append(self._files / _SEGMENTS, (json.dumps(segment) + "\n").encode())
        self._segments.append(segment)

    @property
    def _objects(self) -> BucketPath | None:
        """The bucket's folder of segments; None on a disk."""
        return self.folder / "segments" if isinstance(self.folder, BucketPath) else None

    def _mirror(self) -> Path:
        """The local folder for the files of a cache in a bucket."""
        known_by = hashlib.sha256(f"{self.folder} {records.checksum(self._about)}".encode()).hexdigest()[:16]
        mirror = cache_folder() / "buckets" / known_by
        mirror.mkdir(parents=True, exist_ok=True)
        return mirror

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Blocks other local processes that change the same mirror."""
        if self._objects is None:
            yield
            return
        with (self._files / ".changing").open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _fetch(self) -> None:
        """Downloads the bucket's missing segments."""
        if self._objects is None:
            return
        with self._changing():
            self._read_files()
            known = {segment["sha256"] for segment in self._segments}
            absent = sorted(self._objects.objects().keys() - known)
            if absent:
                self._trim()
            for digest in absent:
                contents = (self._objects / digest).read_bytes()
                count = len(contents) // (8 + self.row_bytes)
                codes = np.frombuffer(contents, np.int64, count)
                shape = (len(contents) - 8 * count) // self.row_bytes, self._width
                logits = np.frombuffer(contents, self.dtype, math.prod(shape), 8 * count).reshape(shape)
                if self._digest(codes, logits) != digest:
                    logger.warning(
                        "skipping segment %s of the teacher cache %s: checksum mismatch; "
                        "its rows are missing until they are computed again",
                        digest[:16], self.folder,
                    )  # fmt: skip
                    continue
                self._add(codes, logits, digest)

    def _read(self) -> None:
        """Reads the index; verifies segments that were not verified before."""
        self._fetch()
        self._read_files()

    def _read_files(self) -> None:
        verified = {(segment["start"], segment["sha256"]) for segment in self._segments}
        self._segments = []
        codes, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, line in enumerate(_lines(self._files / _SEGMENTS)):
            try:
                segment, own = self._verified(line, verified)
            except _DAMAGE as error:
                logger.warning(
                    "skipping segment %d of the teacher cache %s: %s; its rows are missing until they are "
                    "computed again",
                    number, self.folder, error,
                )  # fmt: skip
                continue
            self._segments.append(segment)
            codes.append(own)
            rows.append(segment["start"] + np.arange(segment["rows"]))
        self._index(codes, rows)

    def _verified(self, line: str, verified: set[Any]) -> tuple[dict[str, Any], np.ndarray]:
        """A segment and its codes; a `verified` one is not read again."""
        segment = json.loads(line)
        start, count, digest = segment["start"], segment["rows"], segment["sha256"]
        own, logits = self._segment(start, count)
        if (start, digest) not in verified and self._digest(own, logits) != digest:
            raise ValueError("checksum mismatch")
        return segment, own

    def _digest(self, *arrays: np.ndarray) -> str:
        sha = hashlib.sha256(records.checksum(self._about).encode())
        for array in arrays:
            sha.update(np.ascontiguousarray(array).view(np.uint8).data)
        return sha.hexdigest()

    def _segment(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        there = (self._files / _CODES).stat().st_size // 8
        if not 0 <= start <= start + count <= there:
            raise ValueError(f"its rows are {start} to {start + count}, and there are {there}")
        codes = np.fromfile(self._files / _CODES, np.int64, count, offset=8 * start)
        shape = (count, self._width)
        return codes, np.memmap(self._files / _LOGITS, self.dtype, "r", start * self.row_bytes, shape)

    def _index(self, codes: list[np.ndarray], rows: list[np.ndarray]) -> None:
        """Sorts the codes for `_find`, and memory-maps the logits; the last row of a repeated code counts."""
        every, places = np.concatenate(codes)[::-1], np.concatenate(rows)[::-1]
        self._codes, first = np.unique(every, return_index=True)
        self._rows = places[first]
        if self._end:
            shape = (self._end, self._width)
            self._logits: np.ndarray = np.memmap(self._files / _LOGITS, self.dtype, "r", shape=shape)

    @property
    def _end(self) -> int:
        return max((segment["start"] + segment["rows"] for segment in self._segments), default=0)


# Reading a damaged segment may raise these.  Another OSError says that it cannot be read now.
_DAMAGE = (ValueError, KeyError, TypeError, FileNotFoundError, RecursionError, OverflowError)


def _about(key: CacheKey, dtype: str) -> dict[str, Any]:
    """The contents of cache.json, as read back from JSON."""
    return json.loads(json.dumps({"format": _FORMAT, "key": dataclasses.asdict(key), "dtype": dtype}))


def _read_about(folder: Path) -> dict[str, Any]:
    file = folder / _ABOUT
    try:
        about = records.parse(file)
        if about.get("format", _FORMAT) != _FORMAT:
            raise ValueError(
                f"{file} has format {about['format']!r:.40}, not {_FORMAT}; move {folder} away, or name "
                "another"
            )
        return records.read(file, _SCHEMA)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no teacher cache in {folder} (looked for {_ABOUT}); build one with `jaxkd cache`"
        ) from None
    except DamagedError as error:
        raise DamagedError(
            f"{error}; `jaxkd cache` with this teacher, data and folder rebuilds it and keeps the rows"
        ) from None


def _rows_without_lines(folder: Path) -> list[str]:
    """The files of rows on a disk that no line of segments describes: they would be cut."""
    if isinstance(folder, BucketPath):
        return []
    return [name for name in (_CODES, _LOGITS) if (folder / name).exists() and (folder / name).stat().st_size]


def _lines(path: Path) -> list[str]:
    """The complete lines of a file; a truncated last line does not count."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _append(path: Path, contents: bytes) -> None:
    with path.open("ab") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
