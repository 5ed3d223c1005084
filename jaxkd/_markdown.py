"""Markdown tables that also read well as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A table with its first `left` columns left-aligned, and the others right-aligned.

    >>> print(table(["model", "accuracy"], [["resnet8", "97.50"]], left=1), end="")
    | model   | accuracy |
    | :--     |      --: |
    | resnet8 |    97.50 |
    """
    marks = [":--" if column < left else "--:" for column in range(len(head))]
    lines = [head, marks, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "| "
        + " | ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |\n"
        for line in lines
    )


# What Markdown, the mathematics in it, or HTML would read as its own; `_` inside a word is plain already.
_SPECIAL = re.compile(r"[\\`*$<>\[\]|&~]|(?<!\w)_|_(?!\w)")


def escape(text: str) -> str:
    r"""Any text, as one line of Markdown that shows it.

    >>> print(escape("a|b\n$x$ <b>max_logit</b>"))
    a\|b \$x\$ \<b\>max_logit\</b\>
    """
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
