"""Trees of arrays on disk: Orbax for the bytes, a digest of our own for their integrity.

Orbax restores a flipped bit without a word, so whoever stores a tree stores its digest beside it and
compares after restoring.  What is written is read back before anybody relies on it, and nothing is replaced
or removed before its successor is complete (`jaxkd.files.whole`, whose names are here too).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxkd.files.whole import (
    UNFINISHED,
    DamagedError,
    first_line,
    read_json,
    reading,
    remove_unfinished,
    replacing,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "UNFINISHED",
    "DamagedError",
    "check_files",
    "file_digests",
    "first_line",
    "load_tree",
    "read_json",
    "reading",
    "remove_unfinished",
    "replacing",
    "save_tree",
    "tree_digest",
    "write_bytes",
    "write_json",
    "write_text",
]

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
    with _plain_path(folder) as plain:
        try:
            with _checkpointer() as checkpointer:
                tree = jax.device_get(checkpointer.restore(plain, target))
        except Exception as error:
            raise DamagedError(f"{folder} cannot be restored ({first_line(error)})") from error
    if digest is not None and tree_digest(tree) != digest:
        raise DamagedError(f"{folder} is damaged: checksum mismatch (expected {digest[:16]}...)")
    return tree


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
            raise DamagedError(f"{path} is damaged: checksum mismatch (expected {digest[:16]}...)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
