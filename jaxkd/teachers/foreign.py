"""Checkpoints that other programs saved with Flax.

An Orbax folder, an Orbax manager's folder of steps, or a Flax msgpack file becomes a tree of arrays.  The
network's variables are found in it by names and shapes, among optimiser states, step counts and random keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import jax.tree_util
import numpy as np

from jaxkd import storage

_WRAPPERS = ("value", "raw_value")  # NNX wraps arrays in these
_LISTED = 8

Path_ = tuple[str, ...]


def read(path: Path) -> dict[Path_, np.ndarray]:
    """All arrays of a checkpoint, by their path in it.

    Args:
      path: an Orbax folder; or a folder of steps, of which the last one is used; or a msgpack file.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: it is not a checkpoint, or a damaged one.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}; name an Orbax folder or a Flax msgpack file")
    if path.is_file():
        try:
            tree = flax.serialization.msgpack_restore(path.read_bytes())
        except Exception as error:
            raise ValueError(f"{path} is no Flax msgpack file ({storage.first_line(error)})") from None
    else:
        tree = storage.load_tree(_item(path), None)
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        words = tuple(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in keys)
        found[words[:-1] if words and words[-1] in _WRAPPERS else words] = np.asarray(leaf)
    return found


def _item(folder: Path) -> Path:
    """The folder of arrays, in a folder written by a checkpointer or a checkpoint manager."""
    if any((folder / mark).exists() for mark in ("_METADATA", "manifest.ocdbt")):
        return folder
    steps = [each for each in folder.iterdir() if each.is_dir() and each.name.isdigit()]
    if steps:
        return _item(max(steps, key=lambda step: int(step.name)))
    items = [each for each in sorted(folder.iterdir()) if each.is_dir() and (each / "_METADATA").exists()]
    if len(items) == 1:
        return items[0]
    held = ", ".join(each.name for each in (items or sorted(folder.iterdir())[:_LISTED]))
    raise ValueError(f"{folder} is no Orbax checkpoint, or several; name one folder of {held or 'it'}")


def find(
    arrays: Mapping[Path_, np.ndarray], like: Mapping[str, Any], *, prefix: str | None = None
) -> dict[str, Any]:
    """Finds a network's variables among the arrays of a checkpoint.

    Args:
      arrays: the arrays, by path.
      like: shapes of the variables, by collection.
      prefix: the paths' prefix, words joined with "/"; by default the only one under which they fit.

    Returns:
      Variables with the structure of `like`.

    Raises:
      ValueError: they fit nowhere (the missing ones are listed), or in several places (all are named).

    >>> like = {"params": {"w": np.zeros(2)}}
    >>> find({("state", "params", "w"): np.ones(2), ("step",): np.ones(())}, like)
    {'params': {'w': array([1., 1.])}}
    """
    wanted = {tuple(str(key.key) for key in keys): leaf for keys, leaf in _leaves(like)}
    candidates = (
        [tuple(prefix.split("/"))] if prefix else sorted({p for path in arrays for p in _starts(path)})
    )
    fitting, seen = {}, set()
    for start in candidates:
        found = _under(arrays, start, wanted)
        # With the collections' names below "state" and without them below "state/params" are the same arrays.
        if found is not None and (which := tuple(map(id, found.values()))) not in seen:
            seen.add(which)
            fitting[start] = found
    # An optimiser's moments have the names and the shapes of parameters.
    without = {start: found for start, found in fitting.items() if not {"opt_state", "opt"} & set(start)}
    if fitting and not without and not prefix:
        raise ValueError(
            f'what fits the network lies under "{"/".join(next(iter(fitting)))}" alone, where an optimizer '
            "keeps its moments; name it with prefix= if these are the weights"
        )
    fitting = without or fitting
    if len(fitting) == 1:
        (found,) = fitting.values()
        return jax.tree_util.tree_unflatten(
            jax.tree_util.tree_structure(like), [_checked(path, found[path], wanted[path]) for path in wanted]
        )
    if fitting:
        names = ", ".join(f'"{"/".join(start)}"' for start in list(fitting)[:_LISTED])
        raise ValueError(f"variables that fit the network lie under each of {names}; choose one with prefix=")
    shapes = [f"{'/'.join(path)} {list(leaf.shape)}" for path, leaf in wanted.items()][:_LISTED]
    held = [f"{'/'.join(path)} {list(leaf.shape)}" for path, leaf in arrays.items()][:_LISTED]
    raise ValueError(
        f"the network's variables are not in the checkpoint; wanted are {', '.join(shapes)}, ..., and it "
        f"holds {', '.join(held)}, ..."
    )


def _checked(path: Path_, array: np.ndarray, leaf: Any) -> np.ndarray:
    """The array in the network's type; floating-point numbers must be finite in it.

    Raises:
      ValueError: they are not, or the array has other numbers.
    """
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return array
    name = "/".join(path)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} is of type {array.dtype}; weights must be floating-point numbers")
    with np.errstate(over="ignore"):
        cast = array.astype(leaf.dtype, copy=False)
    if not np.isfinite(np.asarray(cast, np.float64)).all():
        raise ValueError(f"{name} has values that are not finite in {leaf.dtype}; the network diverged")
    return cast


def _leaves(like: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(like)


def _starts(path: Path_) -> Iterator[Path_]:
    return (path[:count] for count in range(len(path)))


def _under(
    arrays: Mapping[Path_, np.ndarray], start: Path_, wanted: Mapping[Path_, Any]
) -> dict[Path_, np.ndarray] | None:
    """The wanted arrays below a prefix, with or without the names of the collections."""
    for named in (True, False):
        found = {}
        for path, leaf in wanted.items():
            words = path if named else path[1:]
            # NNX variables have their whole path in one word here.
            array = arrays.get(start + words)
            if array is None:
                array = arrays.get(start + tuple(part for word in words for part in word.split("-")))
            if array is None or array.shape != tuple(leaf.shape):
                break
            found[path] = array
        else:
            return found
    return None
