"""Trees of arrays on disk: Orbax for the bytes, a digest of our own for their integrity.

Orbax restores a flipped bit without a word, so whoever stores a tree stores its digest beside it and
compares after restoring.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


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
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def save_tree(folder: Path, tree: Any) -> str:
    """Saves a tree of arrays in a new folder and returns its digest, which the caller keeps."""
    host = jax.device_get(tree)
    with _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), host, force=True)
    return tree_digest(host)


def load_tree(folder: Path, like: Any, digest: str) -> Any:
    """Restores a tree of NumPy arrays of the structure of `like`.

    Raises:
      DamagedError: it cannot be read, or its digest is another.
    """
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    try:
        with _checkpointer() as checkpointer:
            tree = jax.device_get(checkpointer.restore(folder.absolute(), target))
    except Exception as error:
        raise DamagedError(f"{folder} cannot be restored ({type(error).__name__}: {error})") from error
    if tree_digest(tree) != digest:
        raise DamagedError(f"{folder} is damaged: its contents do not have the digest {digest[:16]}...")
    return tree


def of_this_process_alone() -> ocp.options.MultiprocessingOptions:
    """For Orbax, which would otherwise wait for all processes of a pod."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=of_this_process_alone())


def write_json(path: Path, contents: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(contents, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
