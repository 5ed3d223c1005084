"""The location of a folder: on this machine, or in a Cloud Storage bucket (`gs://bucket/folder`).

`place` makes a path of what a user typed.  One in a bucket is a `BucketPath`, with the methods of `Path` that
jaxkd uses, so that the code that reads is the same for both; `jaxkd.files.whole` has the ways to write.
A store has no folders: one is there if an object's name begins with its name.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fnmatch
import io
import math
import os
import stat
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PosixPath
from typing import Any, NamedTuple

from jaxkd._extras import require

SCHEME = "gs"
_OTHER_SCHEMES = ("s3", "az", "abfs", "hf", "http", "https", "ftp", "hdfs")

# A store that fails or is busy is asked again for so long; then the command ends, and can be repeated.
RETRY_SECONDS = 300.0
_REQUEST_SECONDS = 60.0
_AT_ONCE = 8  # requests, where many objects are read, written or removed


def place(path: str | os.PathLike[str]) -> Path:
    """A folder or a file, local or in a bucket.

    Raises:
      ValueError: it is in a kind of store that jaxkd does not write to.

    >>> place("runs/a"), str(place("gs://bucket/runs/a"))
    (PosixPath('runs/a'), 'gs://bucket/runs/a')
    >>> (place("gs://bucket/runs/a") / "model").parent.name
    'a'
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path)
    scheme, colon, rest = text.partition(":/")  # of `Path("gs://x")`, one of the slashes is left
    if colon and scheme == SCHEME:
        if not rest.strip("/"):
            raise ValueError(f"{text} names no bucket; accepted is gs://BUCKET/FOLDER")
        return BucketPath(f"{SCHEME}:/{rest.lstrip('/')}")
    if colon and scheme in _OTHER_SCHEMES:
        raise ValueError(
            f"{scheme}://{rest.lstrip('/')} is in a store that jaxkd does not know; accepted are folders of "
            "this machine (a bucket may be mounted there) and gs://BUCKET/FOLDER"
        )
    return Path(path).expanduser() if text == "~" or text.startswith("~/") else Path(path)


def is_remote(path: object) -> bool:
    """Whether a path, or its text, is in a bucket."""
    if isinstance(path, BucketPath):
        return True
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(f"{SCHEME}:/")


class Held(NamedTuple):
    """An object of a store.

    Attributes:
      name: below the folder that was listed.
      size: in bytes.
      generation: another one each time that the object is written.
      updated: when that was, in seconds since 1970, by the store's clock.
    """

    name: str
    size: int
    generation: int
    updated: float


class Status(NamedTuple):
    """What jaxkd reads of `os.stat_result`."""

    st_mode: int
    st_size: int
    st_mtime: float
    st_mtime_ns: int


class BucketPath(PosixPath):
    """A place in a bucket.

    Reading raises what `Path` raises; so does a store that fails, as `OSError`, when it was asked for
    `RETRY_SECONDS`.  An object is written atomically: no reader sees a part of it.
    """

    def __str__(self) -> str:
        return super().__str__().replace(f"{SCHEME}:/", f"{SCHEME}://", 1)

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """The name of the object, if it is one."""
        return "/".join(self.parts[2:])

    @property
    def _below(self) -> str:
        return f"{self.key}/" if self.key else ""

    # Looking

    def held(self) -> Held | None:
        """The object with exactly this name; None if there is none."""
        with self._asking():
            blob = _bucket(self.bucket).get_blob(self.key, **_options()) if self.key else None
        if blob is None:
            self._require_bucket()
        return None if blob is None else _held(blob, self.name)

    def objects(self) -> dict[str, Held]:
        """All objects below this folder, by the rest of their names, in order."""
        with self._asking(of_bucket=True):
            return self._by_name(_client().list_blobs(self.bucket, prefix=self._below, **_options()))

    def direct(self) -> tuple[dict[str, Held], set[str]]:
        """The objects directly in this folder, and the names of its folders."""
        with self._asking(of_bucket=True):
            listed = _client().list_blobs(self.bucket, prefix=self._below, delimiter="/", **_options())
            files = self._by_name(listed)
            return files, {name.removeprefix(self._below).rstrip("/") for name in listed.prefixes}

    def _by_name(self, blobs: Any) -> dict[str, Held]:
        """Listed objects by their names below this folder."""
        found = [_held(blob, blob.name.removeprefix(self._below)) for blob in blobs]
        # A name that ends in a slash is what some tools make to show a folder.
        return {one.name: one for one in found if one.name and not one.name.endswith("/")}

    def is_file(self, **_: Any) -> bool:
        """See `Path`."""
        return self.held() is not None

    def is_dir(self, **_: Any) -> bool:
        """See `Path`."""
        with self._asking(of_bucket=True):
            listed = _client().list_blobs(self.bucket, prefix=self._below, max_results=1, **_options())
            return any(True for _ in listed) or not self.key

    def exists(self, **_: Any) -> bool:
        """See `Path`."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """See `Path`."""
        return False

    def stat(self, **_: Any) -> Any:
        """See `Path`; a `Status`."""
        if (held := self.held()) is not None:
            return Status(stat.S_IFREG | 0o600, held.size, held.updated, round(held.updated * 1e9))
        if self.is_dir():
            return Status(stat.S_IFDIR | 0o700, 0, 0.0, 0)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def iterdir(self) -> Generator[BucketPath, None, None]:
        """See `Path`."""
        files, folders = self.direct()
        yield from (self / name for name in sorted(files.keys() | folders))

    def glob(self, pattern: str, **_: Any) -> Generator[BucketPath, None, None]:
        """Of this folder alone, what has a name like `pattern`; folders, if that ends in a slash."""
        files, folders = self.direct()
        names = folders if pattern.endswith("/") else files.keys() | folders
        yield from (self / name for name in sorted(fnmatch.filter(names, pattern.rstrip("/"))))

    def absolute(self) -> BucketPath:
        """See `Path`."""
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        """See `Path`."""
        return self

    # Reading

    def read_bytes(self) -> bytes:
        """See `Path`; the store's checksum of the object is compared."""
        try:
            with self._asking():
                blob = _bucket(self.bucket).blob(self.key)
                return blob.download_as_bytes(checksum="crc32c", **_options())
        except FileNotFoundError:
            self._require_bucket()
            raise

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """See `Path`; UTF-8."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """See `Path`; for reading alone, from memory."""
        if mode not in ("r", "rb"):
            raise OSError(errno.EROFS, "an object is written whole, by jaxkd.files.whole", str(self))
        contents = io.BytesIO(self.read_bytes())
        return contents if mode == "rb" else io.TextIOWrapper(contents, "utf-8")

    # Changing

    def put(self, contents: bytes, *, generation: int | None = None) -> int:
        """Writes the object whole, and returns its generation.

        Args:
          contents: its bytes; their checksum goes with them, and the store compares it.
          generation: that of the object that may be replaced, 0 for none; by default any.

        Raises:
          FileExistsError: there is another one.  That may be what this very call has written: where the
            store's answer was lost, it was asked again.
        """
        with self._asking(of_bucket=True):
            blob = _bucket(self.bucket).blob(self.key)
            blob.upload_from_string(
                contents,
                "application/octet-stream",
                checksum="crc32c",
                if_generation_match=generation,
                **_options(),
            )
        return int(blob.generation)

    def write_bytes(self, data: Any) -> int:
        """See `Path`."""
        self.put(bytes(data))
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        """See `Path`; UTF-8."""
        return self.write_bytes(data.encode())

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a folder is there when something is in it."""

    def unlink(self, missing_ok: bool = False, *, generation: int | None = None) -> None:
        """See `Path`; only of that `generation`, if it is given."""
        try:
            with self._asking():
                blob = _bucket(self.bucket).blob(self.key)
                blob.delete(if_generation_match=generation, **_options())
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Removes all objects below; those directly in the folder, which say that it is whole, first."""
        for names in _by_depth(self.objects())[::-1]:
            each(lambda name: (self / name).unlink(missing_ok=True), names)

    def copy_tree(self, target: BucketPath) -> None:
        """Copies all objects below, inside the store; those directly in the folder last."""
        for names in _by_depth(self.objects()):
            each(lambda name: (self / name)._copy(target / name), names)

    def rename(self, target: str | os.PathLike[str]) -> BucketPath:
        """Copies an object, or a folder, and removes what was copied; a kill in between leaves both."""
        to = place(target)
        assert isinstance(to, BucketPath), "within a store"
        if self.held() is not None:
            self._copy(to)
            self.unlink(missing_ok=True)
        else:
            self.copy_tree(to)
            self.rmtree()
        return to

    def _copy(self, target: BucketPath) -> None:
        with self._asking():
            source = _bucket(self.bucket)
            source.copy_blob(source.blob(self.key), _bucket(target.bucket), target.key, **_options())

    # Failing

    @contextlib.contextmanager
    def _asking(self, *, of_bucket: bool = False) -> Iterator[None]:
        """Turns the store's errors into those of files; `of_bucket` if only that can be absent."""
        import google.auth.exceptions
        import requests
        from google.api_core import exceptions
        from google.cloud.storage.exceptions import DataCorruption

        try:
            yield
        except exceptions.NotFound:
            if of_bucket:
                raise self._no_bucket() from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        except exceptions.PreconditionFailed:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self)) from None
        except (exceptions.Forbidden, exceptions.Unauthorized) as error:
            raise PermissionError(
                errno.EACCES,
                f"the store refuses ({_brief(error)}); give the account the role Storage Object Admin on "
                f"the bucket {self.bucket}, or log in with `gcloud auth application-default login`",
                str(self),
            ) from error
        except google.auth.exceptions.GoogleAuthError as error:
            raise PermissionError(
                errno.EACCES,
                f"there are no credentials ({_brief(error)}); type `gcloud auth application-default login`",
                str(self),
            ) from error
        except (
            exceptions.GoogleAPICallError,
            exceptions.RetryError,
            requests.RequestException,
            DataCorruption,
        ) as error:
            raise OSError(
                errno.EIO,
                f"the store failed for {_patience():.0f} seconds ({_brief(error)})",
                str(self),
            ) from error

    def _require_bucket(self) -> None:
        """Raises OSError if the bucket is not there: what is not in it is not merely absent."""
        if self.bucket not in _KNOWN:
            with self._asking(of_bucket=True):
                list(_client().list_blobs(self.bucket, max_results=1, **_options()))
            _KNOWN.add(self.bucket)

    def _no_bucket(self) -> OSError:
        return OSError(
            errno.ENXIO,
            f"there is no bucket {self.bucket}; make it with `gcloud storage buckets create "
            f"{SCHEME}://{self.bucket}`, or name another",
            str(self),
        )


_KNOWN: set[str] = set()  # buckets that were there
_CLIENTS: dict[Any, Any] = {}
_MAKING = threading.Lock()
_LOCAL = threading.local()


@contextlib.contextmanager
def asking_for(seconds: float) -> Iterator[None]:
    """A store that fails is asked again in this thread for so long, if that is less than `RETRY_SECONDS`."""
    before = getattr(_LOCAL, "seconds", math.inf)
    _LOCAL.seconds = seconds
    try:
        yield
    finally:
        _LOCAL.seconds = before


def each(function: Any, things: Any) -> list[Any]:
    """What a function gives of each of some things, several at once; raises what it raises."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, things))


def _by_depth(names: Any) -> list[list[str]]:
    """Names of objects in groups, those that are deepest in folders first; the last may be empty."""
    deep = [name for name in names if "/" in name]
    return [deep, [name for name in names if "/" not in name]]


def _client() -> Any:
    """The client of this process, for all of its threads."""
    key = os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST")
    with _MAKING:
        if key not in _CLIENTS:
            require("gcs", "google.cloud.storage")
            import google.auth.exceptions
            from google.cloud import storage

            try:
                _CLIENTS[key] = storage.Client()
            except google.auth.exceptions.DefaultCredentialsError:
                _CLIENTS[key] = storage.Client.create_anonymous_client()  # public buckets can be read
        return _CLIENTS[key]


def _bucket(name: str) -> Any:
    return _client().bucket(name)


def _options() -> dict[str, Any]:
    from google.cloud.storage.retry import DEFAULT_RETRY

    # All that is asked here may be asked twice.
    return {"retry": DEFAULT_RETRY.with_timeout(_patience()), "timeout": min(_REQUEST_SECONDS, _patience())}


def _patience() -> float:
    return min(RETRY_SECONDS, getattr(_LOCAL, "seconds", math.inf))


def _held(blob: Any, name: str) -> Held:
    updated: datetime.datetime = blob.updated
    return Held(name, int(blob.size), int(blob.generation), updated.timestamp())


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
