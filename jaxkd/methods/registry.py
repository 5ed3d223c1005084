"""The table of methods: one row a name, with the weights that its source recommends."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jaxkd.methods.base import Method
from jaxkd.methods.logit import KD

_METHODS: dict[str, Callable[..., Method]] = {
    # Hinton et al. 2015 (arXiv 1503.02531), weights of mdistiller.
    "kd": functools.partial(KD, weight=0.9, ce_weight=0.1, temperature=4.0, standardize=False),
    # Sun et al. 2024 (arXiv 2403.01427), weights of its code.
    "lskd": functools.partial(KD, weight=9.0, ce_weight=0.1, temperature=2.0, standardize=True),
    # Matsuyama et al. 2025 (arXiv 2503.09030), weights of its code.
    "atkd": functools.partial(KD, weight=9.0, ce_weight=0.1, temperature="max_logit", standardize=True),
}


def names() -> tuple[str, ...]:
    """The names that `create` knows.

    >>> from jaxkd import methods
    >>> methods.names()
    ('kd', 'lskd', 'atkd')
    """
    return tuple(_METHODS)


def create(name: str, **options: Any) -> Method:
    """Creates a method by name.

    Args:
      name: one of `names()`.
      **options: attributes to set instead of the recommended ones: `weight`, `ce_weight`, the method's own.

    Returns:
      A Flax Linen module, called as `method(student, teacher, labels, progress) -> (loss, metrics)`.

    Raises:
      ValueError: the name is unknown, or the method has no such option.

    >>> from jaxkd import methods
    >>> method = methods.create("atkd", weight=6.0)
    >>> method.temperature, method.weight, method.ce_weight
    ('max_logit', 6.0, 0.1)
    """
    if name not in _METHODS:
        raise ValueError(f'unknown method "{name}". Accepted: {", ".join(_METHODS)}')
    try:
        return _METHODS[name](**options)
    except TypeError as error:
        raise ValueError(f'method "{name}" cannot take {options}: {error}') from error


def options(method: Method) -> dict[str, Any]:
    """A method's attributes other than `weight`, by name.

    >>> from jaxkd import methods
    >>> methods.options(methods.create("lskd"))
    {'ce_weight': 0.1, 'temperature': 2.0, 'standardize': True}
    """
    skipped = ("weight", "parent", "name")
    return {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name not in skipped
    }
