"""Trees of arrays on disk: Orbax for the bytes, a digest of our own for their integrity.

Orbax silently restores flipped bits, so a digest is stored with every tree and compared after restoring.
Everything written is read back before it is used, and nothing is replaced or removed before its successor is
complete (see `jaxkd.files.whole`; its names are also available here).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxkd.files.places import BucketPath, each, is_remote
from jaxkd.files.whole import (
    UNFINISHED,
    DamagedError,
    first_line,
    naming,
    reading,
    remove,
    remove_unfinished,
    replacing,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "UNFINISHED",
    "DamagedError",
    "at_hand",
    "check_files",
    "checked_copy",
    "file_digests",
    "first_line",
    "load_tree",
    "reading",
    "remove",
    "remove_unfinished",
    "replacing",
    "save_tree",
    "tree_digest",
    "write_bytes",
    "write_json",
    "write_text",
]

_STRAGGLERS_SECONDS = 0.2

# Orbax numbers its operations for the whole process, and in two threads at once would confuse their signals.
_ORBAX = threading.Lock()

# The library below Orbax takes these in any part of a path for a pattern.
_PATTERN = re.compile(r"[\[\]*?\\]")


def tree_digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of all arrays of a tree.

    >>> tree_digest({"a": np.zeros(2)}) == tree_digest({"a": np.zeros(2)})
    True
    >>> tree_digest({"a": np.zeros(2)}) == tree_digest({"b": np.zeros(2)})
    False
    """
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def save_tree(folder: Path, tree: Any) -> str:
    """Saves a tree of arrays in a new folder, reads it back, and returns its digest, which the caller keeps.

    Raises:
      OSError: it cannot be written, or there is something at `folder`.
      DamagedError: what was written does not come back as it was.
    """
    host = jax.device_get(tree)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; a tree is saved in a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _plain_path(folder.parent) as parent, _checkpointer() as checkpointer:
            plain = parent / _PATTERN.sub("_", folder.name)
            checkpointer.save(plain, host)
            checkpointer.wait_until_finished()
            if plain.name != folder.name:
                plain.rename(parent / folder.name)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{folder} cannot be written ({system_error(error) or first_line(error)})") from error
    digest = tree_digest(host)
    # With a known structure: TensorStore leaks some memory when it reads it (0.7 MB for 150 arrays).
    known = all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(host))
    load_tree(folder, host if known else None, digest)
    return digest


def load_tree(
    folder: Path,
    like: Any,
    digest: str | None = None,
    *,
    checked: bool = False,
    name: Path | None = None,
) -> Any:
    """Restores a tree of NumPy arrays of the structure of `like`; nested dictionaries if that is None.

    Args:
      folder: where it was saved.
      like: arrays, or their shapes.
      digest: of the tree; None if its files alone have digests.
      checked: whether every file was found to have its digest: what fails then is not the files' fault.
      name: of the folder in messages.

    Raises:
      DamagedError: the digest is another, or the files were not checked and cannot be restored.
      ValueError: it is another tree than `like`.
      OSError: it cannot be restored now: no memory, no descriptors, a disk that fails.
    """
    name = name or folder
    if isinstance(folder, BucketPath):  # its files are not verified yet
        with at_hand(folder, folder.objects()) as there:
            return load_tree(there, like, digest, name=name)
    try:
        tree = _restore(folder, like)
        damaged = digest is not None and tree_digest(tree) != digest
        if damaged and like is not None:  # or its arrays were of other types than those of `like`
            damaged = tree_digest(_restore(folder, None)) != digest
    except Exception as error:
        # Orbax says the same of a tree that cannot be read and of one that is another.
        if checked and like is not None and _can_be_restored(folder):
            raise ValueError(f"{name} holds other arrays than are asked for ({first_line(error)})") from error
        reason = system_error(error)
        if checked or reason is not None:
            raise OSError(
                f"{name} cannot be restored now ({reason or first_line(error)}); nothing was changed"
            ) from error
        raise DamagedError(f"{name} cannot be restored ({first_line(error)})") from error
    if like is not None:
        pairs = zip(jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(tree), strict=True)
        for (path, wanted), found in pairs:
            if found.shape != wanted.shape:
                raise ValueError(
                    f"{name} holds other arrays than are asked for: {jax.tree_util.keystr(path)} is "
                    f"{list(found.shape)} and not {list(wanted.shape)}"
                )
    if damaged:
        raise DamagedError(f"{name} is damaged: checksum mismatch (expected {(digest or '')[:16]}...)")
    return tree


def _restore(folder: Path, like: Any) -> Any:
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    with _plain_path(folder) as plain, _checkpointer() as checkpointer:
        return jax.device_get(checkpointer.restore(plain, target))


def _can_be_restored(folder: Path) -> bool:
    try:
        _restore(folder, None)
    except Exception:
        return False
    return True


def system_error(error: BaseException) -> str | None:
    """What the system refused, in words, if that is why something failed; None if the files may be why.

    >>> system_error(MemoryError()), system_error(FileNotFoundError(2, "No such file"))
    ('not enough memory', None)
    """
    # TensorStore hides the system's error in a long text.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or number == errno.ENOMEM:
        return "not enough memory"
    if number in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL):
        return None
    return os.strerror(number)


@contextlib.contextmanager
def at_hand(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """A folder of this machine with some files of another: that folder itself; of one in a bucket, a copy.

    What is raised names the folder.

    Raises:
      DamagedError: a name leads out of the folder.
      OSError: a file cannot be read.
    """
    if not is_remote(folder):
        yield folder
        return

    def fetch(name: str) -> None:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DamagedError(f"{folder} is damaged: it names a file {name!r:.100}")
        with contextlib.suppress(FileNotFoundError):
            contents = (folder / name).read_bytes()
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(contents)

    with tempfile.TemporaryDirectory(prefix="jaxkd-") as there, naming(folder, there):
        copy = Path(there)
        each(fetch, names)
        yield copy


@contextlib.contextmanager
def checked_copy(folder: Path, digests: Mapping[str, str]) -> Iterator[Path]:
    """A private copy of a folder, each file compared with its digest on the way.

    Others may replace the folder meanwhile, and Orbax prints tracebacks when files vanish that it is reading.
    Where there is no room for a copy, it is the folder itself.

    Raises:
      DamagedError, OSError: as `check_files`.
    """
    if is_remote(folder):
        with at_hand(folder, digests) as there:
            check_files(there, digests)
            yield there
        return
    check_files(folder, digests)
    with contextlib.ExitStack() as stack:
        there = folder
        with contextlib.suppress(OSError):
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxkd-"))) / "copy"
            shutil.copytree(folder, copy)
            there = copy
        if there is not folder:
            check_files(there, digests)
        yield there


@contextlib.contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """A path of a folder without characters of patterns: its own, or a link for as long as it is used."""
    folder = folder.absolute()
    if not _PATTERN.search(str(folder)):
        yield folder
        return
    if _PATTERN.search(tempfile.gettempdir()):
        raise OSError(
            f"neither {folder} nor the folder for temporary files, {tempfile.gettempdir()}, may have one of "
            "[ ] * ? \\ in its path; set TMPDIR to another"
        )
    with tempfile.TemporaryDirectory(prefix="jaxkd-") as there:
        link = Path(there) / "link"
        link.symlink_to(folder)
        yield link


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.StandardCheckpointer]:
    # Of this process alone: Orbax would otherwise wait for all processes of a pod.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    with (
        _ORBAX,
        _quiet_about_closed_loops(),
        ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer,
    ):
        yield checkpointer


@contextlib.contextmanager
def _quiet_about_closed_loops() -> Iterator[None]:
    """Where one of many reads or writes fails, Orbax closes the event loop that the others report to.

    Each of them then prints a traceback, though the failure itself is raised.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    except BaseException:
        time.sleep(_STRAGGLERS_SECONDS)
        raise
    finally:
        sys.unraisablehook = before


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file under a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Compares files with their digests, before they are parsed.

    Raises:
      DamagedError: a file is absent or has another digest; it is named.
      OSError: one cannot be read.
    """
    for name, digest in digests.items():
        path = folder / name
        try:
            if not path.is_file():  # a pipe would be waited for, a device never ends
                raise DamagedError(f"{path} is damaged: it is absent, or no file")
            found = _sha256(path)
        except OSError as error:
            raise OSError(f"{path} cannot be read now ({error.strerror}); nothing was changed") from error
        if found != digest:
            raise DamagedError(f"{path} is damaged: checksum mismatch (expected {digest[:16]}...)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
