"""Trees of arrays on disk: Orbax for the bytes, a digest of our own for their integrity.

Orbax restores a flipped bit without a word, so whoever stores a tree stores its digest beside it and
compares after restoring.  What is written is read back before anybody relies on it, and nothing is replaced
or removed before its successor is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# In the names of folders that are not complete.
UNFINISHED = ".new-"

# Orbax numbers its operations for the whole process, and in two threads at once would confuse their signals.
_ORBAX = threading.Lock()


class DamagedError(ValueError):
    """What was restored is not what was saved."""


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
      OSError: it cannot be written.
      DamagedError: what was written does not come back as it was.
    """
    host = jax.device_get(tree)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(folder.absolute(), host, force=True)
            checkpointer.wait_until_finished()
    except OSError:
        raise
    except Exception as error:  # TensorStore hides the system's error in a long text
        code = re.search(r"os_error_code='(\d+)'", str(error))
        why = os.strerror(int(code[1])) if code else first_line(error)
        raise OSError(f"{folder} cannot be written ({why})") from error
    digest = tree_digest(host)
    load_tree(folder, None, digest)
    return digest


def load_tree(folder: Path, like: Any, digest: str | None = None) -> Any:
    """Restores a tree of NumPy arrays of the structure of `like`; nested dictionaries if that is None.

    Raises:
      DamagedError: it cannot be read, or its digest is another (None is for files that were checked).
    """
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    try:
        with _checkpointer() as checkpointer:
            tree = jax.device_get(checkpointer.restore(folder.absolute(), target))
    except Exception as error:
        raise DamagedError(f"{folder} cannot be restored ({first_line(error)})") from error
    if digest is not None and tree_digest(tree) != digest:
        raise DamagedError(f"{folder} is damaged: its contents do not have the digest {digest[:16]}...")
    return tree


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.StandardCheckpointer]:
    # Of this process alone: Orbax would otherwise wait for all processes of a pod.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    with _ORBAX, ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        yield checkpointer


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file under a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises DamagedError, naming the file, unless each has its digest: before anybody interprets it."""
    for name, digest in digests.items():
        path = folder / name
        try:
            found = _sha256(path)
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
        if found != digest:
            raise DamagedError(f"{path} is damaged: it has not the digest that it was saved with")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well.

    Killed at any moment, it leaves the old contents or the new, whole: at `folder`, or, between the two
    renames, beside it, where `recover` finds them.  If the block fails, `folder` is as it was.

    >>> with tempfile.TemporaryDirectory() as there:
    ...     with replacing(Path(there) / "box") as new:
    ...         _ = (new / "word").write_text("whole")
    ...     (Path(there) / "box" / "word").read_text()
    'whole'
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}{UNFINISHED}", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)
        # A rename may reach the disk before the data of what is renamed.
        for path in [*new.rglob("*"), new]:
            _flush(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    old = _predecessor(folder)
    if folder.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Brings back what a process killed in `replacing` left beside `folder`; call it before reading."""
    old = _predecessor(folder)
    if old.is_dir() and not folder.is_dir():
        old.rename(folder)


def remove_unfinished(parent: Path) -> None:
    """Removes what killed processes left of new folders; nobody else may be writing in `parent`."""
    for left in parent.glob(f".*{UNFINISHED}*"):
        shutil.rmtree(left)


def _predecessor(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"


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


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      DamagedError: it is not JSON any more.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: it is not JSON ({first_line(error)})") from None


def write_json(path: Path, contents: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(contents, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        new = Path(file.name)
        try:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
            new.chmod(0o644)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def first_line(error: BaseException) -> str:
    """An error's type and the beginning of its message, for a message of our own."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
