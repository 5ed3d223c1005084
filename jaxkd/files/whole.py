"""Files and folders that are written whole or not at all, by one writer at a time, while others read.

What is new is made under a hidden name beside the old, flushed, and renamed.  A writer holds a lock on what
it makes, and one on the parent while it renames; readers take no lock and change nothing: they look again
when a folder was replaced under their hands.  What a killed writer left is removed by the next one.

All that writes goes through here, so a path in a bucket may stand wherever one of this machine may; how the
same is promised there is in `jaxkd.files.stored`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from jaxkd.files import stored
from jaxkd.files.leases import BusyError
from jaxkd.files.places import BucketPath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("jaxkd")

# In the names of files and folders that are not complete.
UNFINISHED = ".new-"

_LOCK_SECONDS = 60.0
_READ_SECONDS = 60.0
_UNLOCKED_SECONDS = 10.0  # longer than between making a file and locking it

T = TypeVar("T")


class DamagedError(ValueError):
    """What was read is not what was saved."""


def first_line(error: BaseException) -> str:
    """An error's type and the beginning of its message, for a message of our own."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def raise_if_not_damage(error: Exception, path: Path) -> None:
    """Raises OSError if reading a file failed for a reason that is not in the file: no memory, no disk."""
    if isinstance(error, MemoryError):
        raise OSError(errno.ENOMEM, "there is not enough memory to read it", str(path)) from None
    # A damaged file sends its reader to places that do not exist, which is an invalid argument.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, contents: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(contents, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Writes a file whole or not at all, with the permissions that umask leaves."""
    with writing(path) as file:
        file.write(contents)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file to fill, which takes the place of `path` when the block ends well; as `write_bytes`."""
    if isinstance(path, BucketPath):
        contents = io.BytesIO()
        yield contents
        path.put(contents.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(path)
    with new.open("xb") as file:
        try:
            _try_lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    _remove_dead(path)


@contextlib.contextmanager
def replacing(folder: Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well.

    Killed at any moment, it leaves the old contents or the new, whole: at `folder`, or, between two renames,
    beside it, where `reading` and the next writer find them.  If the block fails, `folder` is as it was.

    Args:
      folder: what to make or to replace; of a symbolic link, what it points to.
      replaceable: whether a folder that holds something may be removed.  An empty one always may.

    Raises:
      ValueError: there is something else, which stays.
      OSError: it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as there:
    ...     with replacing(Path(there) / "box", lambda _: False) as new:
    ...         _ = (new / "word").write_text("whole")
    ...     (Path(there) / "box" / "word").read_text()
    'whole'
    """
    if isinstance(folder, BucketPath):
        with stored.replacing(folder, lambda there: _require_replaceable(there, replaceable)) as filled:
            yield filled
        return
    folder = folder.resolve() if folder.is_symlink() else folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent):  # or it could look while another writer is between its renames
        _require_replaceable(folder, replaceable)
    new = _beside(folder)
    new.mkdir()
    try:
        with _locked(new):
            yield new
            # A rename may reach the disk before the data of what is renamed.
            for path in [*new.rglob("*"), new]:
                _flush(path)
            with _locked(folder.parent):
                _recover(folder)
                _require_replaceable(folder, replaceable)
                _swap(folder, new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _remove_dead(folder)


def reading(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` gives of a folder that another process may be replacing; nothing is written.

    Args:
      folder: where it is, or was before a writer was killed.
      read: reads all that is needed of the folder that it is given.  It is called again if it failed and the
        folder is another one by then.
    """
    deadline = time.monotonic() + _READ_SECONDS
    while True:
        found = _look(folder)
        try:
            return read(found[0])
        except (OSError, ValueError):
            # With the place: between a writer's renames the same folder lies beside its own name.
            if _look(folder) == found or time.monotonic() > deadline:
                raise


def current(folder: Path) -> Path:
    """Where the contents of a folder are: there, or beside it if a writer is between its renames."""
    return _look(folder)[0]


def remove_unfinished(parent: Path) -> None:
    """Removes what killed processes left of new files and folders in `parent`.

    If the file system has no locks to detect live writers, and in a bucket, no other process may be writing
    there.
    """
    if isinstance(parent, BucketPath):
        return stored.remove_unfinished(parent)
    for path in parent.iterdir() if parent.is_dir() else ():
        if path.name.startswith(".") and UNFINISHED in path.name:
            _remove_if_dead(path, without_locks=True)


def names_in(parent: Path) -> list[str]:
    """The names of the folders in `parent`, in order, without what is being written there."""
    if isinstance(parent, BucketPath):
        return stored.names_in(parent)
    if not parent.is_dir():
        return []
    names = {path.name for path in parent.iterdir() if path.is_dir()}
    hidden = {name for name in names if name.startswith(".")}
    between = {name[1:].removesuffix(_OLD) for name in hidden if name.endswith(_OLD)}
    return sorted(names - hidden | between)


def remove(folder: Path) -> None:
    """Removes a folder; a kill in between leaves nothing under its name that readers take for whole."""
    if isinstance(folder, BucketPath):
        folder.rmtree()
    else:
        shutil.rmtree(folder.rename(folder.parent / f".{folder.name}{UNFINISHED}gone"))


class Local:
    """A folder of this machine to write in at any time, for a folder that may be in a bucket.

    Of one in a bucket it holds what this process writes, and nothing else; `push` sends each file whole.
    Logs are kept so: no line can be added to an object.

    Attributes:
      path: the folder; of one of this machine, it is that one.
    """

    _SECONDS = 15.0  # between two automatic pushes, and
    _SHARE = 20.0  # this many times as long as the last one took

    def __init__(self, folder: Path) -> None:
        self._bucket = folder if isinstance(folder, BucketPath) else None
        self._temporary = tempfile.TemporaryDirectory(prefix="jaxkd-") if self._bucket is not None else None
        self.path = folder if self._temporary is None else Path(self._temporary.name)
        self._sent: dict[str, tuple[int, int]] = {}
        self._next = 0.0

    def push(self, *, now: bool = True) -> None:
        """Sends the files that have changed; unless `now`, if it was not done for some time.

        Raises:
          OSError: the store did not take them.
        """
        start = time.monotonic()
        if self._bucket is None or (not now and start < self._next):
            return
        for file in sorted(self.path.rglob("*")):
            name, status = file.relative_to(self.path).as_posix(), file.stat()
            known = status.st_size, status.st_mtime_ns
            if stat.S_ISREG(status.st_mode) and self._sent.get(name) != known:
                (self._bucket / name).put(file.read_bytes())
                self._sent[name] = known
        end = time.monotonic()
        self._next = end + max(self._SECONDS, self._SHARE * (end - start))

    def close(self) -> None:
        """Removes what was kept here of a folder in a bucket."""
        if self._temporary is not None:
            self._temporary.cleanup()


@contextlib.contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """A file of this machine for a library that reads nothing else: the file itself, or a copy of an object.

    What is raised names the object.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxkd-") as there:
        copy = Path(there) / path.name
        copy.write_bytes(path.read_bytes())
        with naming(path, copy):
            yield copy


@contextlib.contextmanager
def naming(path: Path, copy: str | Path) -> Iterator[None]:
    """Has errors name what was copied in place of its copy."""
    try:
        yield
    except (ValueError, OSError) as error:
        error.args = tuple(
            part.replace(str(copy), str(path)) if isinstance(part, str) else part for part in error.args
        )
        raise


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder of this machine to put files in, which are then in `folder` beside those that are there."""
    local = Local(folder)
    try:
        local.path.mkdir(parents=True, exist_ok=True)
        yield local.path
        local.push()
    finally:
        local.close()


_OLD = ".jaxkd-old"


def _predecessor(folder: Path) -> Path:
    return folder.parent / f".{folder.name}{_OLD}"


def _beside(path: Path) -> Path:
    """A new hidden name in the folder of `path`."""
    return path.parent / f"{_prefix(path)}{secrets.token_hex(4)}"


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}{UNFINISHED}"


def _require_replaceable(folder: Path, replaceable: Callable[[Path], bool]) -> None:
    if folder.is_dir():
        if any(folder.iterdir()) and not replaceable(folder):
            held = sorted(path.name for path in folder.iterdir())
            shown = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
            raise ValueError(
                f"{folder} holds something else ({shown}), and nothing was changed; name a folder that is "
                "new, empty, or of the same kind, or move that one away"
            )
    elif os.path.lexists(folder) or folder.exists():
        raise ValueError(f"{folder} is a file; name a folder, or move the file away")


def _swap(folder: Path, new: Path) -> None:
    old = _predecessor(folder)
    if folder.is_dir():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:  # an interrupt, too, may come here
        if old.is_dir() and not folder.is_dir():
            old.rename(folder)
        raise
    _flush(folder.parent)
    _discard(folder, old)


def _recover(folder: Path) -> None:
    """Ends what a process killed between the renames had begun."""
    old = _predecessor(folder)
    if old.is_dir() and not folder.is_dir():
        old.rename(folder)
    _discard(folder, old)


def _discard(folder: Path, old: Path) -> None:
    # Renamed first: a kill in between leaves nothing under a name that readers look for.
    if old.is_dir():
        shutil.rmtree(old.rename(_beside(folder)), ignore_errors=True)


def _remove_dead(path: Path) -> None:
    """Removes what killed writers of `path` left beside it."""
    with contextlib.suppress(OSError):
        for left in path.parent.iterdir():
            if left.name.startswith(_prefix(path)) and time.time() - left.stat().st_mtime > _UNLOCKED_SECONDS:
                _remove_if_dead(left, without_locks=False)


def _remove_if_dead(path: Path, *, without_locks: bool) -> None:
    """Removes a file or a folder that no living process holds a lock on, or could if there were locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        if _try_lock(descriptor, otherwise=without_locks):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, *, otherwise: bool = False) -> bool:
    """Locks an open file or folder until it is closed; `otherwise` if the file system has no locks."""
    try:
        _lock(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        return otherwise
    return True


def lock(file: IO[str], busy: str) -> None:
    """Locks an open file until it is closed; on a file system without locks, only warns.

    Raises:
      BusyError: another process has locked it; the message is `busy`.
    """
    try:
        _lock(file.fileno())
    except BlockingIOError:
        raise BusyError(busy) from None
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s): a second process that works there would not be noticed",
            file.name, error.strerror,
        )  # fmt: skip


def _lock(descriptor: int) -> None:
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "there are no locks here")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock on a folder; on a file system without locks, nothing.

    Raises:
      OSError: another process holds it for too long.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                _lock(descriptor)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(
                        f"another process has been writing in {folder} for {_LOCK_SECONDS:.0f} seconds"
                    ) from None
                time.sleep(0.01)
                continue
            except OSError:
                pass
            break
        yield
    finally:
        os.close(descriptor)


def _look(folder: Path) -> tuple[Path, Any]:
    """Where a folder's contents are, and what tells them from others in their place; None if absent."""
    if isinstance(folder, BucketPath):
        return stored.look(folder)
    for _ in range(3):  # a writer may move them from the one to the other between two looks
        for there in (folder, _predecessor(folder)):
            with contextlib.suppress(OSError):
                status = there.stat()
                if stat.S_ISDIR(status.st_mode):
                    return there, (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return folder, None


def _flush(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems do not flush folders
            raise
    finally:
        os.close(descriptor)
