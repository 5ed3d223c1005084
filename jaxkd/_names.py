"""What to say of a name that is not in a table, and what to call an object that has none."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection
from typing import Any


def unknown(
    what: str, name: str, known: Collection[str], *, shown: Collection[str] | None = None, also: str = ""
) -> ValueError:
    """The error for a name that is not known, with the nearest one that is.

    Args:
      what: kind of thing, such as "method".
      name: as it was given.
      known: the accepted names.
      shown: those of them that the message lists; all by default.
      also: what else is accepted, in words.

    >>> unknown("method", "dkdd", ["kd", "dkd"])
    ValueError('unknown method "dkdd"; did you mean "dkd"? Accepted: kd, dkd')
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'did you mean "{near[0]}"? Accepted' if near else "accepted"
    return ValueError(
        f'unknown {what} "{name}"; {hint}: {", ".join(known if shown is None else shown)}{also}'
    )


def kind(thing: Any) -> str:
    """What a refused object is, in words.

    >>> kind(3), kind(len), kind(dict)
    ('int', 'the function len', 'the class dict instead of an instance, dict(...)')
    """
    if isinstance(thing, type):
        return f"the class {thing.__name__} instead of an instance, {thing.__name__}(...)"
    return f"the function {thing.__name__}" if inspect.isroutine(thing) else type(thing).__name__


def describe_object(thing: Any) -> str:
    """The text of an object in a line, without addresses in memory, which differ in every process.

    An object whose class has no text of its own is described by its attributes.

    >>> describe_object(len), "0x" in describe_object(lambda: 0)
    ('<built-in function len>', False)
    >>> class Noise:
    ...     def __init__(self, scale):
    ...         self.scale = scale
    >>> describe_object(Noise(0.5))
    'Noise(scale=0.5)'
    """
    if type(thing).__repr__ is object.__repr__ and getattr(thing, "__dict__", None):
        attributes = (f"{name}={describe_object(value)}" for name, value in sorted(vars(thing).items()))
        return f"{type(thing).__qualname__}({', '.join(attributes)})"
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(thing)).split())
