"""Options: small frozen dataclasses next to the code that uses them; commands inherit from several.

A field declares whether it is a main option (`main`), and whether runs that differ in it end with the same
result (`free`).  Values are checked in the same way on the command line, from Python and from a file.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, dataclass_transform

from jaxkd.files.places import place


def option(*, default: Any = dataclasses.MISSING, main: bool = False, free: bool = False) -> Any:
    """A field of options.

    Args:
      default: its default; without one, the option is required.
      main: whether `--help` lists it first.
      free: whether it does not affect a run's result, except for rounding: then a run may be resumed with
        another value.
    """
    metadata = {"main": main, "free": free}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The base of all options: types are checked, and paths may be strings."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, as_type(flag(field.name), value, hints[field.name]))
        self.check()

    def check(self) -> None:
        """Raises ValueError for values that contradict each other or are out of range; calls `super`."""

    def require(self, at_least: float, *names: str) -> None:
        """Raises ValueError for a field that is below a bound, NaN or infinite."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not at_least <= value < math.inf:
                raise ValueError(f"{flag(name)} must be at least {at_least}, got {value}")

    def decisive(self) -> dict[str, Any]:
        """The fields that determine a run's result, ready for JSON."""
        names = {field.name for field in dataclasses.fields(self) if not field.metadata.get("free")}
        return {name: value for name, value in self.as_dict().items() if name in names}

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON; paths are absolute, since the file may be read from other folders."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value


def flag(name: str) -> str:
    """The command line's spelling of a field.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def as_type(name: str, value: Any, hint: Any) -> Any:
    """Converts a value to its option's type: only text to a path, and an integer to a float.

    Raises:
      ValueError: it is of another type.

    >>> as_type("--epochs", 3, int | None), as_type("--run", "runs/a", Path)
    (3, PosixPath('runs/a'))
    >>> as_type("--epochs", True, int)
    Traceback (most recent call last):
    ...
    ValueError: --epochs must be a whole number, got True
    """
    try:
        found = _fit(value, hint)
    except ValueError as error:  # of a place
        raise ValueError(f"{name}: {error}") from None
    if found is _MISFIT:
        raise ValueError(f"{name} must be {_words(hint)}, got {value!r}")
    return found


_MISFIT = object()


def _fit(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fit(value, arguments[0])
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        fits = (_fit(value, one) for one in arguments)
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if any(value == one and type(value) is type(one) for one in arguments) else _MISFIT
    if origin is tuple:
        return _fit_tuple(value, arguments)
    if hint is type(None):
        return None if value is None else _MISFIT
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)  # NumPy's too
    if hint is float:
        exact = number and (not isinstance(value, int) or abs(value) <= sys.float_info.max)
        return float(value) if exact else _MISFIT
    if hint is int:
        exact = number and (isinstance(value, numbers.Integral) or float(value).is_integer())
        return int(value) if exact else _MISFIT
    if hint is Path:
        return place(value) if isinstance(value, str | Path) else _MISFIT
    if hint is str and isinstance(value, Path):
        return str(value)
    return value if isinstance(value, hint) else _MISFIT


def _fit_tuple(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return _MISFIT
    kinds = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
    if len(kinds) != len(value):
        return _MISFIT
    fits = tuple(_fit(one, kind) for one, kind in zip(value, kinds, strict=True))
    return _MISFIT if any(fit is _MISFIT for fit in fits) else fits


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return "several values, each " + _words(arguments[0])
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return "nothing" if hint is type(None) else names.get(hint, str(hint))
