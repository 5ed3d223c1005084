"""The one rule between PyTorch's parameter names and layouts, and Flax's.

`layer1.0.conv1.weight` `[out, in, kh, kw]` is `params/layer1_0/conv1/kernel` `[kh, kw, in, out]`: numbers
join the name before them, and the last word and the rank decide on the leaf.  Arrays and dictionaries only;
reading files is not done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

_HEADS = ("fc", "linear", "classifier")  # what code bases call the last layer
_WRAPPERS = ("state_dict", "model", "net")  # what training scripts put around the weights
_MAX_LISTED = 8


def unwrap(contents: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Finds the weights in a checkpoint: inside "state_dict", "model" or "net", without "module." prefixes.

    Raises:
      ValueError: there is no mapping from names to arrays in it.

    >>> unwrap({"net": {"module.fc.bias": np.zeros(2)}, "epoch": 3})
    {'fc.bias': array([0., 0.])}
    """
    for wrapper in _WRAPPERS:
        if isinstance(inner := contents.get(wrapper), Mapping):
            return unwrap(inner)
    weights = {name.removeprefix("module."): w for name, w in contents.items() if isinstance(w, np.ndarray)}
    if not weights:
        raise ValueError(
            f"no weights found: the file holds {_listed(list(contents))}, and none of them is an array; "
            f"expected a state_dict, alone or under one of {', '.join(_WRAPPERS)}"
        )
    return weights


def to_flax(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """Converts torch-named weights to Flax variables of the structure of `like`.

    Args:
      weights: arrays by torch name, in torch's layout.
      like: variables, or their shapes (`jax.eval_shape` of `init`), of the network that receives them.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32.

    Raises:
      ValueError: weights are missing, left over or of another shape; one message lists them all.
    """
    wanted = flax.traverse_util.flatten_dict(dict(like))
    head = _head(wanted)
    found: dict[tuple[str, ...], np.ndarray] = {}
    names: dict[tuple[str, ...], str] = {}
    for name, weight in weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        path, array = _convert(name, weight, head)
        found[path], names[path] = array, name

    problems = [f"missing: {_listed(['/'.join(p) for p in wanted if p not in found])}"]
    problems += [f"not in the model: {_listed([names[p] for p in found if p not in wanted])}"]
    shapes = [
        f"{names[p]} is {found[p].shape}, the model needs {tuple(wanted[p].shape)}"
        for p in wanted
        if p in found and found[p].shape != tuple(wanted[p].shape)
    ]
    problems += [f"other shape (in Flax's layout): {_listed(shapes)}"]
    problems = [problem for problem in problems if not problem.endswith(": none")]
    if problems:
        raise ValueError("the weights do not fit the model; " + "; ".join(problems))
    return flax.traverse_util.unflatten_dict({path: np.asarray(found[path], np.float32) for path in wanted})


def _convert(name: str, weight: np.ndarray, head: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    *words, last = name.split(".")
    modules: list[str] = []
    for word in words:
        if word.isdigit() and modules:
            modules[-1] += f"_{word}"
        else:
            modules.append(word)
    if len(modules) == 1 and modules[0] in _HEADS and head is not None:
        modules = [head]
    if last in ("running_mean", "running_var"):
        return ("batch_stats", *modules, last.removeprefix("running_")), weight
    if last != "weight":
        return ("params", *modules, last), weight
    if weight.ndim == 4:
        return ("params", *modules, "kernel"), weight.transpose(2, 3, 1, 0)
    if weight.ndim == 2:
        return ("params", *modules, "kernel"), weight.T
    return ("params", *modules, "scale"), weight


def _head(wanted: Mapping[tuple[str, ...], Any]) -> str | None:
    return next((path[1] for path in wanted if path[0] == "params" and path[1] in _HEADS), None)


def _listed(items: list[str]) -> str:
    if not items:
        return "none"
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(items[:_MAX_LISTED]) + more
