"""The one rule between PyTorch's parameter names and layouts, and Flax's, in both directions.

`layer1.0.conv1.weight` `[out, in, kh, kw]` is `params/layer1_0/conv1/kernel` `[kh, kw, in, out]`: numbers
join the name before them, and the last word and the rank decide on the leaf.  The rule holds for grouped and
depthwise convolutions, where `in` is the number of channels in a group.  Arrays and dictionaries only;
reading and writing files is not done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

_HEADS = ("fc", "linear", "classifier")  # what code bases call the last layer
_PROJECTIONS = ("downsample", "shortcut")  # and the 1x1 convolutions beside a block
_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_MAX_LISTED = 8

Path = tuple[str, ...]


def to_flax(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """Converts torch-named weights to Flax variables of the structure of `like`.

    Args:
      weights: arrays by torch name, in torch's layout.  The last layer may be called fc, linear or
        classifier, and projections downsample or shortcut, whatever the model calls them;
        `num_batches_tracked` is not needed.
      like: variables, or their shapes (`jax.eval_shape` of `init`), of the network that receives them.

    Returns:
      A dictionary with "params" and "batch_stats", float32, in memory of their own.

    Raises:
      ValueError: weights are missing, left over or of another shape (one message lists them all), or one is
        not of finite floating-point numbers (it is named).
    """
    if problems := misfits(weights, like):
        raise ValueError(problems)
    places = paths(weights, like)
    by_path = {path: name for name, path in places.items()}
    variables = {}
    for path in flax.traverse_util.flatten_dict(dict(like)):
        name = by_path[path]
        array = _in_flax_layout(path, weights[name])
        variables[path] = np.array(_checked(name, path, array), np.float32, order="C")
    return flax.traverse_util.unflatten_dict(variables)


def misfits(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> str:
    """What keeps `to_flax` from converting weights by names and shapes; empty if nothing does."""
    wanted = flax.traverse_util.flatten_dict(dict(like))
    found: dict[Path, str] = {}
    doubled = []
    for name, path in paths(weights, like).items():
        if found.setdefault(path, name) != name:
            doubled.append(f"{found[path]} and {name}")
    shapes = {path: _in_flax_layout(path, weights[name]).shape for path, name in found.items()}
    missing = [path for path in wanted if path not in found]
    problems = {
        "missing": ["/".join(path) for path in missing],
        "not in the model": [name for path, name in found.items() if path not in wanted],
        "twice": doubled,
        "other shape (in Flax's layout)": [
            f"{found[path]} is {shapes[path]}, the model needs {tuple(leaf.shape)}"
            for path, leaf in wanted.items()
            if path in found and shapes[path] != tuple(leaf.shape)
        ],
    }
    listed = [f"{what}: {_listed(items)}" for what, items in problems.items() if items]
    if missing and all(any(word.startswith(_PROJECTIONS) for word in path) for path in missing):
        listed.append(
            'a ResNet without weights in its shortcuts is imported with --shortcut A (shortcut="A")'
        )
    return f"the weights do not fit the model; {'; '.join(listed)}" if listed else ""


def paths(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Path]:
    """Where each weight goes in Flax variables of the structure of `like`, by its torch name."""
    wanted = flax.traverse_util.flatten_dict(dict(like))
    own = {name: flax_path(name, weights[name].ndim) for name in weights if not is_counter(name)}
    theirs, ours = _head(own.values()), _head(wanted)
    taken = set(own.values())
    found = {}
    for name, path in own.items():
        if theirs and ours and path[1:-1] == (theirs,):
            path = (path[0], ours, path[-1])
        if path not in wanted:
            # One of another name for the projection, if the model has it and the weights have not.
            others = (other for other in _other_projections(path) if other in wanted and other not in taken)
            path = next(others, path)
        found[name] = path
    return found


def is_counter(name: str) -> bool:
    """Whether it is one of PyTorch's counts of batches, which are not weights."""
    return name.endswith("num_batches_tracked")


def flax_path(name: str, ndim: int) -> Path:
    """The rule: the path of the weight that torch calls `name` and that has `ndim` axes.

    >>> flax_path("layer1.0.conv1.weight", 4)
    ('params', 'layer1_0', 'conv1', 'kernel')
    """
    *words, last = name.split(".")
    modules: list[str] = []
    for word in words:
        if word.isdigit() and modules:
            modules[-1] += f"_{word}"
        else:
            modules.append(word)
    if last in ("running_mean", "running_var"):
        return ("batch_stats", *modules, last.removeprefix("running_"))
    if last != "weight":
        return ("params", *modules, last)
    return ("params", *modules, "kernel" if ndim in (2, 4) else "scale")


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
    for path, array in flax.traverse_util.flatten_dict(dict(variables)).items():
        array = np.asarray(array)
        if path[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        weights[torch_name(path)] = np.ascontiguousarray(array)
    return weights


def torch_name(path: Path) -> str:
    """The rule backwards.

    >>> torch_name(("params", "layer1_0", "conv1", "kernel"))
    'layer1.0.conv1.weight'
    """
    _, *modules, leaf = path
    # The numbers at a module's end are places in torch's sequences.
    words = [re.sub(r"_(?=\d+(_\d+)*$)", ".", module) for module in modules]
    return ".".join([*words, _TORCH_LEAVES.get(leaf, leaf)])


def _in_flax_layout(path: Path, weight: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return weight
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def _checked(name: str, path: Path, weight: np.ndarray) -> np.ndarray:
    """The weight, if it is one: finite floating-point numbers, and variances not negative."""
    if not np.issubdtype(weight.dtype, np.floating):
        raise ValueError(
            f"{shown(name)} is of type {weight.dtype}; weights must be floating-point numbers (float16, "
            "bfloat16, float32 or float64): save the network as it was trained, not quantised"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(weight.astype(np.float32, copy=False))
    if not finite.all():
        raise ValueError(
            f"{shown(name)} has {finite.size - np.count_nonzero(finite):,} of {finite.size:,} values that "
            "are not finite in float32; the network diverged or the file is damaged"
        )
    if path[-1] == "var" and weight.size and weight.min() < 0:
        raise ValueError(f"{shown(name)} has the negative variance {weight.min():g}; the file is damaged")
    return weight


def _other_projections(path: Path) -> Iterator[Path]:
    for index, module in enumerate(path):
        word, underscore, number = module.partition("_")
        if word in _PROJECTIONS:
            for other in _PROJECTIONS:
                yield (*path[:index], f"{other}{underscore}{number}", *path[index + 1 :])


def _head(paths: Iterable[Path]) -> str | None:
    """The module of the last layer; None if there is not exactly one that is called so."""
    heads = {path[1] for path in paths if len(path) == 3 and path[1].split("_")[0] in _HEADS}
    return heads.pop() if len(heads) == 1 else None


def shown(name: str) -> str:
    """A name of a file, for a message: no control characters, not endless."""
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= 100 else f"{name[:100]}..."


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(map(shown, items[:_MAX_LISTED])) + more
