"""The table of methods, for `jaxkd methods` and for the docs."""

from __future__ import annotations

from collections.abc import Iterable

from jaxkd import _markdown
from jaxkd.methods.registry import accepted, create, names, summary

CACHEABLE = frozenset(("logits", "pooled"))  # what a cache can hold of a teacher
_HEAD = ("method", "what it is", "reads of the teacher", "learns", "CE, weight", "cache")


def table(chosen: Iterable[str] | None = None) -> str:
    """A Markdown table with a row for each method: what it reads and learns, its weights, and the cache.

    Args:
      chosen: names; all by default.

    >>> from jaxkd.methods import listing
    >>> [cell.strip() for cell in listing.table(["kd"]).splitlines()[-1].split("|")[3:-1]]
    ['logits', '-', '0.1, 0.9', 'yes']
    """
    rows = [_row(name) for name in (names() if chosen is None else chosen)]
    return _markdown.table(_HEAD, rows, left=len(_HEAD))


def _row(name: str) -> list[str]:
    method, options = create(name), accepted(name)
    weights = [f"{options[key].default:g}" for key in ("ce_weight", "weight") if key in options]
    several = len(method.views) > 1
    return [
        name,
        summary(name),
        (", ".join(method.reads) or "-") + (f" on {len(method.views)} views" if several else ""),
        method.learns or "-",
        ", ".join(weights) or "-",
        "yes" if is_cacheable(method.reads, method.views) else "no",
    ]


def is_cacheable(reads: Iterable[str], views: Iterable[str]) -> bool:
    """Whether a cache of the teacher can serve a method."""
    return bool(set(reads)) and set(reads) <= CACHEABLE and tuple(views) == ("main",)
