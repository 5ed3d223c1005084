"""The one rule between PyTorch's parameter names and layouts, and Flax's, in both directions.

`layer1.0.conv1.weight` `[out, in, kh, kw]` is `params/layer1_0/conv1/kernel` `[kh, kw, in, out]`: numbers
join the name before them, and the last word and the rank decide on the leaf.  The rule holds for grouped and
depthwise convolutions, where `in` is the number of channels in a group.  Arrays and dictionaries only;
reading and writing files is not done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

_HEADS = ("fc", "linear", "classifier")  # what code bases call the last layer
_WRAPPERS = ("state_dict", "model", "net")  # what training scripts put around the weights
_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_MAX_LISTED = 8


def unwrap(contents: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Finds the weights in a checkpoint: inside "state_dict", "model" or "net", without "module." prefixes.

    Raises:
      ValueError: there is no mapping from names to arrays in it.

    >>> unwrap({"net": {"module.fc.bias": np.zeros(2)}, "epoch": 3})
    {'fc.bias': array([0., 0.])}
    """
    for wrapper in _WRAPPERS:
        if isinstance(inner := contents.get(wrapper), Mapping) and inner is not contents:
            return unwrap(inner)
    weights = {
        name.removeprefix("module."): weight
        for name, weight in contents.items()
        if isinstance(name, str) and isinstance(weight, np.ndarray)
    }
    if not weights:
        held = _listed([str(name) for name in contents])
        raise ValueError(
            f"no weights found: the file holds {held}, and none of them is an array; "
            f"expected a state_dict, alone or under one of {', '.join(_WRAPPERS)}"
        )
    return weights


def to_flax(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """Converts torch-named weights to Flax variables of the structure of `like`.

    Args:
      weights: arrays by torch name, in torch's layout.  The last layer may be called fc, linear or
        classifier, whatever the model calls it; `num_batches_tracked` is not needed.
      like: variables, or their shapes (`jax.eval_shape` of `init`), of the network that receives them.

    Returns:
      A dictionary with "params" and "batch_stats", float32.

    Raises:
      ValueError: weights are missing, left over or of another shape; one message lists them all.
    """
    wanted = flax.traverse_util.flatten_dict(dict(like))
    tracked = [name for name in weights if not name.endswith("num_batches_tracked")]
    converted = {name: _convert(name, weights[name]) for name in tracked}
    theirs, ours = _head(path for path, _ in converted.values()), _head(wanted)
    found: dict[tuple[str, ...], np.ndarray] = {}
    names: dict[tuple[str, ...], str] = {}
    for name, (path, array) in converted.items():
        if theirs and ours and path[1:-1] == (theirs,):
            path = (path[0], ours, path[-1])
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


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts Flax variables to arrays by torch name, in torch's layout: `to_flax` backwards, to the bit.

    Args:
      variables: `{"params": ..., "batch_stats": ...}` of a network whose modules are named by the rule.

    Returns:
      What a PyTorch module of the same structure takes in `load_state_dict`.  There is no
      `num_batches_tracked`, which PyTorch counts by itself; the order is that of `variables`.

    >>> to_torch({"params": {"layer1_0": {"downsample_0": {"kernel": np.zeros((1, 1, 16, 32))}}}}).keys()
    dict_keys(['layer1.0.downsample.0.weight'])
    """
    weights = {}
    for (_, *modules, leaf), array in flax.traverse_util.flatten_dict(dict(variables)).items():
        # The numbers at a module's end are places in torch's sequences.
        words = [re.sub(r"_(?=\d+(_\d+)*$)", ".", module) for module in modules]
        array = np.asarray(array)
        if leaf == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        weights[".".join([*words, _TORCH_LEAVES.get(leaf, leaf)])] = np.ascontiguousarray(array)
    return weights


def _convert(name: str, weight: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    *words, last = name.split(".")
    modules: list[str] = []
    for word in words:
        if word.isdigit() and modules:
            modules[-1] += f"_{word}"
        else:
            modules.append(word)
    if last in ("running_mean", "running_var"):
        return ("batch_stats", *modules, last.removeprefix("running_")), weight
    if last != "weight":
        return ("params", *modules, last), weight
    if weight.ndim == 4:
        return ("params", *modules, "kernel"), weight.transpose(2, 3, 1, 0)
    if weight.ndim == 2:
        return ("params", *modules, "kernel"), weight.T
    return ("params", *modules, "scale"), weight


def _head(paths: Iterable[tuple[str, ...]]) -> str | None:
    """The module of the last layer; None if there is not exactly one that is called so."""
    heads = {path[1] for path in paths if len(path) == 3 and path[1].split("_")[0] in _HEADS}
    return heads.pop() if len(heads) == 1 else None


def _listed(items: list[str]) -> str:
    if not items:
        return "none"
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(items[:_MAX_LISTED]) + more
