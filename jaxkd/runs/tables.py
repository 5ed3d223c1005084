"""A summary of runs as a table: in Markdown, in LaTeX (booktabs), and in CSV."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from jaxkd import _markdown
from jaxkd.runs.statistics import Difference, Spread
from jaxkd.runs.summary import Pair, Summary


def markdown(summary: Summary) -> str:
    """Methods as rows; for each pair the accuracy and, after it, the difference from the baseline."""
    head, rows = _wide(summary, _markdown.escape, "±", "")
    return _markdown.table(head, rows, left=1)


def latex(summary: Summary) -> str:
    """The same as a `tabular` for the package booktabs."""
    head, rows = _wide(summary, escape_latex, r"$\pm$", "$")
    spans, rules = [], []
    width = 1 if summary.baseline is None else 2
    for place, pair in enumerate(summary.pairs):
        first = 2 + place * width
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(_title(summary, pair))}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
    under = ["", *(["accuracy"] if width == 1 else ["accuracy", head[2]]) * len(summary.pairs)]
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(["method", *spans]) + r" \\",
        " ".join(rules),
        " & ".join(under) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


CSV_HEAD = (
    "teacher", "student", "data", "epochs", "method", "seeds", "accuracy", "deviation", "best_accuracy",
    "teacher_accuracy", "sampling_error", "baseline", "difference", "difference_low", "difference_high",
    "difference_seeds",
)  # fmt: skip


def as_csv(summary: Summary) -> str:
    """One line per method and pair, with all numbers in full precision; `CSV_HEAD` names the columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for (method, pair), cell in summary.cells.items():
        values, difference = cell.spread, summary.difference(method, pair)
        best = [run.result["best_accuracy"] for run in cell.runs if "best_accuracy" in run.result]
        low, high = (difference and difference.interval) or (None, None)
        row: list[Any] = [pair.teacher, pair.student, pair.data, pair.epochs, method]
        row += [values.number, values.mean, values.deviation] if values else [0, None, None]
        row += [sum(best) / len(best) if best else None, summary.teachers.get(pair)]
        row += [summary.sampling_error(pair), summary.baseline if difference else None]
        row += [difference.mean, low, high, difference.number] if difference else [None] * 4
        writer.writerow(row)
    return out.getvalue()


def _wide(summary: Summary, escape: Any, plus_minus: str, math: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, its cells in the format of `escape`."""
    compared = summary.baseline is not None
    head = ["method"]
    for pair in summary.pairs:
        head += [
            escape(_title(summary, pair)),
            *([f"difference to {escape(summary.baseline)}"] if compared else []),
        ]
    most = max((cell.spread.number for cell in summary.cells.values() if cell.spread), default=0)
    rows = []
    if summary.teachers:
        known = [summary.teachers.get(pair) for pair in summary.pairs]
        rows.append(["teacher"])
        for accuracy in known:
            rows[0] += ["-" if accuracy is None else f"{accuracy:.2f}", *([""] if compared else [])]
    for method in summary.methods:
        row = [escape(method)]
        for pair in summary.pairs:
            cell = summary.cells.get((method, pair))
            row.append(_accuracy(cell.spread if cell else None, most, plus_minus))
            if compared:
                row.append(_difference(summary.difference(method, pair), math))
        rows.append(row)
    return head, rows


def _title(summary: Summary, pair: Pair) -> str:
    """A pair's name, with the properties that differ between pairs."""
    title = pair.title
    if len({one.data for one in summary.pairs}) > 1:
        title += f", {pair.data}"
    if len({one.epochs for one in summary.pairs}) > 1:
        title += f", {pair.epochs} epochs"
    return title


def _accuracy(values: Spread | None, most: int, plus_minus: str) -> str:
    if values is None:
        return "-"
    shown = f"{values.mean:.2f}"
    if values.deviation is not None:
        shown += f" {plus_minus} {values.deviation:.2f}"
    return shown if values.number == most else f"{shown} (n={values.number})"


def _difference(difference: Difference | None, math: str) -> str:
    if difference is None:
        return ""
    shown = f"{math}{difference.mean:+.2f}{math}"
    if difference.interval is None:
        return shown
    low, high = difference.interval
    return f"{shown} ({math}{low:+.2f}{math} to {math}{high:+.2f}{math})"


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def escape_latex(text: str) -> str:
    r"""Any text, as one line of LaTeX that shows it.

    >>> print(escape_latex("50 % of max_logit|$x$"))
    50 \% of max\_logit\textbar{}\$x\$
    """
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], " ".join(text.split()))
