"""Finds a network's weights in the contents of a file: their prefix and their names.

One rule: the names of nested dictionaries are joined with dots, and a prefix fits if what is under it is
exactly the network.  So it does not matter whether a training script wrapped the weights in "state_dict" or
"ema", nor which wrapper put "module." before them.  Arrays and dictionaries only.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from jaxkd.models.torch_names import is_counter, misfits, paths, shown, torch_name

_MAX_PREFIX_WORDS = 16
_MAX_NAME, _MAX_WEIGHTS, _MAX_LISTED = 256, 100_000, 8


def find(
    contents: Mapping[str, Any],
    like: Mapping[str, Any],
    *,
    rename: Mapping[str, str] | None = None,
    prefix: str | None = None,
) -> dict[str, np.ndarray]:
    """Finds the weights of a network.

    Args:
      contents: what `torch_files.read` returned.
      like: shapes of the network's variables, in the order in which its layers are made.
      rename: whole words of names (or words joined with dots) to what they become, all at once; the empty
        text removes them.
      prefix: of the weights' names; by default the only one under which they fit.

    Returns:
      Arrays by the names for `to_flax`, which lists what is missing if nothing fits.

    Raises:
      ValueError: there are no arrays, `rename` or `prefix` does not apply, the weights fit in several places
        (all are named), or other names fit in order, shape and structure (the renaming is offered).

    >>> like = {"params": {"fc": {"bias": np.zeros(2)}}}
    >>> find({"net": {"module.fc.bias": np.zeros(2)}, "epoch": 3}, like)
    {'fc.bias': array([0., 0.])}
    """
    weights: dict[str, np.ndarray] = {}
    for name, array in _flatten(contents, ""):
        if name in weights:
            raise ValueError(f"two arrays are called {shown(name)}")
        if len(weights) == _MAX_WEIGHTS:
            raise ValueError(f"the file holds more than {_MAX_WEIGHTS:,} arrays")
        weights[name] = array
    if not weights:
        held = ", ".join(shown(str(name)) for name in itertools.islice(contents, _MAX_LISTED))
        raise ValueError(
            f"no weights found: the file holds {held or 'nothing'}, and none of it is an array; expected a "
            "state_dict, alone or in a dictionary"
        )
    if rename:
        weights = _renamed(weights, rename)
    if prefix:
        weights = _under(weights, prefix if prefix.endswith(".") else f"{prefix}.")
        if not weights:
            raise ValueError(f"no name in the file begins with the prefix {prefix!r}")
        return weights
    fitting = [place for place, found in _places(weights, like).items() if not misfits(found, like)]
    if len(fitting) > 1:
        names = ", ".join(f'"{shown(place.removesuffix("."))}"' for place in fitting[:_MAX_LISTED])
        raise ValueError(
            f"weights that fit the model lie under each of {names}; choose one with prefix= (--prefix on the "
            "command line)"
        )
    if fitting:
        return _under(weights, fitting[0])
    closest = _under(weights, _closest(weights, like))
    if offered := same_in_order(closest, like):
        options = " ".join(f"--rename {old}={new}" for old, new in offered.items())
        raise ValueError(
            f"{misfits(closest, like)}. But all layers have the same shapes in the same order, so these are "
            f"likely other names of the same network: try {options} (in Python, rename={offered!r}), and "
            "compare the accuracy with the publisher's"
        )
    return closest


def renaming(pairs: Iterable[str]) -> dict[str, str]:
    """The renaming that texts such as "conv=conv1" ask for.

    Raises:
      ValueError: a text is another.

    >>> renaming(["conv=conv1", "module="])
    {'conv': 'conv1', 'module': ''}
    """
    rename = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not old or not equals:
            raise ValueError(f"a renaming must be OLD=NEW, got {pair!r}")
        rename[old] = new
    return rename


def same_in_order(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, str]:
    """The renaming, for `find`, by which weights fit, if layer by layer they have the shapes of `like`.

    Empty if they have not, or if there is nothing to rename.
    """
    theirs: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, weight in weights.items():
        if not is_counter(name):
            module, _, leaf = name.rpartition(".")
            theirs.setdefault(module, {})[leaf] = tuple(weight.shape)
    ours: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in flax.traverse_util.flatten_dict(dict(like)).items():
        module, _, leaf = torch_name(path).rpartition(".")
        sides = tuple(shape.shape)
        if path[-1] == "kernel":
            sides = (sides[3], sides[2], *sides[:2]) if len(sides) == 4 else sides[::-1]
        ours.setdefault(module, {})[leaf] = sides
    if list(theirs.values()) != list(ours.values()):
        return {}
    pairs = {old: new for old, new in zip(theirs, ours, strict=True) if old != new}
    for offered in (_word_by_word(pairs), pairs):
        if "" not in offered and not misfits(_renamed(weights, offered, strict=False), like):
            return offered
    return {}


def _word_by_word(pairs: Mapping[str, str]) -> dict[str, str]:
    """The few words that differ in the names of many layers, if it is always the same ones."""
    words: dict[str, str] = {}
    for old, new in pairs.items():
        for before, after in zip(old.split("."), new.split("."), strict=False):
            if before != after and words.setdefault(before, after) != after:
                return {}
    return words


def _flatten(contents: Mapping[Any, Any], before: str) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in contents.items():
        if not isinstance(key, str) or not isinstance(value, (np.ndarray, Mapping)):
            continue
        if len(before) + len(key) > _MAX_NAME:
            raise ValueError(
                f"a name has more than {_MAX_NAME} characters: {shown(before + key[:_MAX_NAME])}"
            )
        if isinstance(value, np.ndarray):
            yield before + key, value
        else:
            yield from _flatten(value, f"{before}{key}.")


def _renamed(
    weights: Mapping[str, np.ndarray], rename: Mapping[str, str], *, strict: bool = True
) -> dict[str, np.ndarray]:
    rules = sorted(((old.split("."), new) for old, new in rename.items()), key=lambda rule: -len(rule[0]))
    used: set[str] = set()
    result: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        words, become = name.split("."), []
        while words:
            for old, new in rules:
                if words[: len(old)] == old:
                    become += [new] if new else []
                    used.add(".".join(old))
                    del words[: len(old)]
                    break
            else:
                become.append(words.pop(0))
        if (new_name := ".".join(become)) in result:
            if not strict:
                return dict(weights)
            raise ValueError(f"after renaming, two weights are called {shown(new_name)}")
        result[new_name] = weight
    if strict and (unused := [old for old in rename if old not in used]):
        raise ValueError(
            f"no name in the file has the words {', '.join(map(shown, unused))} to rename; it has "
            f"{', '.join(shown(name) for name in itertools.islice(weights, _MAX_LISTED))}, ..."
        )
    return result


def _under(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _prefixes(name: str) -> Iterator[str]:
    words = name.split(".", _MAX_PREFIX_WORDS)[:-1]
    return ("".join(f"{word}." for word in words[:count]) for count in range(len(words) + 1))


def _counts(weights: Mapping[str, np.ndarray]) -> collections.Counter[str]:
    """The number of weights under each prefix."""
    names = (name for name in weights if not is_counter(name))
    return collections.Counter(prefix for name in names for prefix in _prefixes(name))


def _places(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The prefixes under which there are as many weights as the network has, with these weights."""
    wanted, counts = len(flax.traverse_util.flatten_dict(dict(like))), _counts(weights)
    places: dict[str, dict[str, np.ndarray]] = {}
    for name, weight in weights.items():
        for prefix in _prefixes(name):
            if counts[prefix] == wanted:
                places.setdefault(prefix, {})[name.removeprefix(prefix)] = weight
    return places


def _closest(weights: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> str:
    """The prefix under which most names are the network's; then the fullest, then the longest."""
    wanted = set(flax.traverse_util.flatten_dict(dict(like)))
    counts = _counts(weights)
    fullest = sorted(counts, key=lambda prefix: (-counts[prefix], -len(prefix)))[:32]

    def score(prefix: str) -> tuple[int, int, int]:
        known = len(wanted.intersection(paths(_under(weights, prefix), like).values()))
        return known, -abs(counts[prefix] - len(wanted)), len(prefix)

    return max(fullest, key=score)
