"""Figures of a summary of runs, ready for a paper: each pair of networks is one text column wide."""

from __future__ import annotations

import io
import itertools
import statistics
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxkd import methods
from jaxkd._extras import require
from jaxkd.runs.summary import ALONE, Cell, Summary

require("train", "matplotlib")

import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

COLUMN = 3.4  # inches
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "pdf.fonttype": 42,  # text stays text, which publishers ask for
    "text.parse_math": False,  # a name may have dollar signs
}
# Colours that remain apart for colour-blind readers and in grey (Okabe and Ito).
COLOURS = ("#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#56B4E9")
_MOST_BANDS = 6  # more of them hide each other
_MOST_CURVES = 16  # likewise; the differences show any number of methods
_FAR = 10.0  # median deviations from the median, beyond which a method leaves an axis
_TALL = 10.0  # times the lowest peak of the distributions, beyond which a peak leaves its axis
_WIDE = 20.0  # the ratio from which on a distribution has a logarithmic axis
_EARLY = 4  # epochs; shorter runs are shown whole
_LINES: Any = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = "os^Dv"


class Shown(Figure):
    """A figure that a notebook shows."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(out, format="png", dpi=150)
        return out.getvalue()


class _Look(NamedTuple):
    colour: str
    line: Any
    marker: str


def save_all(summary: Summary, out: Path) -> list[str]:
    """Writes every figure that the runs have data for, as PNG and PDF; returns their names."""
    named: dict[str, Figure | None] = {"accuracy": accuracy(summary), "differences": differences(summary)}
    for name in summary.distributions:
        named[name] = distribution(summary, name)
    made = {name: figure for name, figure in named.items() if figure is not None}
    for name, figure in made.items():
        save(figure, out, name)
    return list(made)


def save(figure: Figure, out: Path, name: str) -> None:
    """Writes a figure as PNG and PDF, the same bytes each time."""
    with mpl.rc_context(STYLE):
        figure.savefig(out / f"{name}.png", dpi=300)
        figure.savefig(out / f"{name}.pdf", metadata={"CreationDate": None})


def accuracy(summary: Summary) -> Figure | None:
    """Test accuracy by epoch, and its difference from the baseline: means, and bands over all seeds.

    None for more methods than a reader can distinguish.
    """
    if len(summary.methods) > _MOST_CURVES:
        return None
    looks = _looks(summary.methods)
    tested = {key: cell for key, cell in summary.cells.items() if any(run.tests for run in cell.runs)}
    if not tested:
        return None
    compared = summary.baseline is not None and any(method != summary.baseline for method, _ in tested)
    figure, grid = _figure(summary, rows=2 if compared else 1, height=1.9)
    for column, pair in enumerate(summary.pairs):
        cells = {method: tested[method, pair] for method in summary.methods if (method, pair) in tested}
        banded = len(cells) <= _MOST_BANDS
        upper = {method: _by_epoch(cell) for method, cell in cells.items()}
        for method, curve in upper.items():
            _band(grid[0, column], curve, looks[method], method, banded)
        _zoom(grid[0, column], upper)
        grid[0, column].set(ylabel=f"{summary.images} accuracy (%)")
        if compared:
            lower, base = grid[1, column], cells.get(summary.baseline or "")
            curves = {}
            for method, cell in cells.items():
                if base is not None and method != summary.baseline:
                    curves[method] = _less(cell, base)
                    _band(lower, curves[method], looks[method], None, banded)
            lower.axhline(0, color=looks[summary.baseline or ""].colour, linewidth=0.8)
            _zoom(lower, curves, 0.0)
            lower.set(ylabel=f"difference to {_plain(summary.baseline or '')}")
        grid[-1, column].set(xlabel="epoch")
        grid[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, grid)
    return figure


def differences(summary: Summary) -> Figure | None:
    """Each method's difference from the baseline: dots for seeds, a bar for the mean and its 95 % interval.

    A method far from all others is written at the edge, since the others would shrink to a line.
    """
    found = {
        (method, pair): difference
        for method, pair in summary.cells
        if (difference := summary.difference(method, pair)) is not None
    }
    if not found:
        return None
    means = {
        method: statistics.fmean(d.mean for (name, _), d in found.items() if name == method)
        for method in summary.methods
        if any(name == method for name, _ in found)
    }
    order = sorted(means, key=lambda method: means[method])
    looks = _looks(summary.methods)
    figure, grid = _figure(summary, rows=1, height=0.65 + 0.21 * len(order))
    for column, pair in enumerate(summary.pairs):
        axes = grid[0, column]
        if (within := summary.difference_by_sampling(pair)) is not None:
            axes.axvspan(-within, within, color="0.92", linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8)
        here = {method: found[method, pair].mean for method in order if (method, pair) in found}
        far = _far_from_the_others(here)
        for place, method in enumerate(order):
            difference = found.get((method, pair))
            if difference is None:
                continue
            if method in far:
                below = difference.mean < 0
                axes.text(
                    0.01 if below else 0.99,
                    place,
                    f"\N{LEFTWARDS ARROW} {difference.mean:.1f}"
                    if below
                    else f"{difference.mean:+.1f} \N{RIGHTWARDS ARROW}",
                    transform=axes.get_yaxis_transform(),
                    ha="left" if below else "right",
                    va="center",
                    fontsize=7,
                )
                continue
            seeds = summary.cells[method, pair].accuracies
            base = summary.cells[summary.baseline or "", pair].accuracies
            each = [seeds[seed] - base[seed] for seed in sorted(seeds.keys() & base.keys())]
            colour = looks[method].colour
            axes.plot(
                each,
                [place] * len(each),
                "o",
                color=colour,
                markersize=2.5,
                markerfacecolor="white",
                zorder=3,
            )
            axes.plot(difference.mean, place, "|", color=colour, markersize=9, markeredgewidth=1.6)
            if difference.interval is not None:
                axes.plot(difference.interval, [place] * 2, "-", color=colour)
        axes.set_yticks(
            range(len(order)), [_plain(method) for method in order] if column == 0 else [""] * len(order)
        )
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set(xlabel=f"difference to {_plain(summary.baseline or '')} (points)")
    return figure


def _far_from_the_others(means: Mapping[str, float]) -> set[str]:
    """The methods whose mean is an outlier among those of all."""
    if not means:
        return set()
    middle = statistics.median(means.values())
    spread = statistics.median(abs(mean - middle) for mean in means.values())
    return {method for method, mean in means.items() if abs(mean - middle) > _FAR * max(spread, 0.5)}


def distribution(summary: Summary, metric: str) -> Figure | None:
    """A metric over the training images of the last epoch, and by epoch: mean and 5 to 95 % range."""
    looks = _looks(summary.methods)
    described = {key: found for key, cell in summary.cells.items() if (found := _described(cell, metric))}
    ends = [
        edge for found in described.values() for one in found for edge in (one["edges"][0], one["edges"][-1])
    ]
    wide = max(ends, default=1.0) > _WIDE * min(ends, default=1.0)
    figure, grid = _figure(summary, rows=2, height=1.9, sharex=False)
    for column, pair in enumerate(summary.pairs):
        shares, epochs = grid[:, column]
        peaks = []
        for method in summary.methods:
            if (method, pair) not in described:
                continue
            cell, look, label = summary.cells[method, pair], looks[method], _plain(method)
            runs = described[method, pair]
            if all(len(one["counts"]) == 1 for one in runs):  # a fixed value: one line says it
                mean = statistics.fmean(one["mean"] for one in runs)
                shares.axvline(mean, color=look.colour, linestyle=look.line, label=label)
            else:
                edges, counts = _merged(runs)
                widths = np.diff(np.log10(edges) if wide else edges)
                density = 100 * counts / counts.sum() / widths
                peaks.append(density.max())
                shares.stairs(density, edges, color=look.colour, linestyle=look.line, label=label)
                shares.stairs(density, edges, color=look.colour, fill=True, alpha=0.15)
            curve = _of_training(cell, metric)
            epochs.plot(list(curve), list(curve.values()), color=look.colour, linestyle=look.line)
            low, high = (_of_training(cell, f"{metric}_{part}") for part in ("p5", "p95"))
            if low.keys() == high.keys():
                epochs.fill_between(list(low), list(low.values()), list(high.values()), color=look.colour,
                                    alpha=0.15, linewidth=0)  # fmt: skip
        unit = "decade" if wide else "unit"
        # A value that hardly varies would make a line of all others; so it looks like one that is fixed.
        top = 1.05 * max((peak for peak in peaks if peak <= _TALL * min(peaks)), default=1.0)
        shares.set(
            xlabel=f"{_plain(metric)} in the last epoch", ylabel=f"images (% per {unit})", ylim=(0, top)
        )
        if wide:
            shares.set_xscale("log")
            shares.xaxis.set_major_formatter("{x:g}")  # the usual one is mathematics
            shares.xaxis.set_minor_formatter("")
        shares.margins(x=0.05)
        epochs.set(xlabel="epoch", ylabel=_plain(metric))
        epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, grid)
    return figure


def _described(cell: Cell, metric: str) -> list[Mapping[str, Any]]:
    """What the finished runs say of a metric that is a distribution."""
    found = [run.result.get("metrics", {}).get(metric, {}) for run in cell.runs]
    return [one for one in found if one.get("counts")]


def _by_epoch(cell: Cell) -> dict[int, list[float]]:
    """Test accuracies of the seeds by epoch, where all that are under way have one."""
    return _where_all([run.tests for run in cell.runs if run.tests])


def _where_all(curves: Sequence[Mapping[int, float]]) -> dict[int, list[float]]:
    """The values of several curves by epoch, where all have one: a mean over fewer would be a jump."""
    common = set.intersection(*map(set, curves)) if curves else set()
    return {epoch: [curve[epoch] for curve in curves] for epoch in sorted(common)}


def _less(cell: Cell, base: Cell) -> dict[int, list[float]]:
    """Differences of test accuracies by epoch, of the seeds that both have."""
    known = {run.seed: run.tests for run in base.runs}
    pairs = [(run.tests, known[run.seed]) for run in cell.runs if run.tests and known.get(run.seed)]
    return _where_all(
        [{epoch: one[epoch] - other[epoch] for epoch in one if epoch in other} for one, other in pairs]
    )


def _of_training(cell: Cell, name: str) -> dict[int, float]:
    """A quantity of the training log at each epoch's end: the mean over the seeds."""
    curves = [{line["epoch"]: line[name] for line in run.of("train") if name in line} for run in cell.runs]
    return {epoch: statistics.fmean(values) for epoch, values in _where_all([c for c in curves if c]).items()}


def _band(
    axes: Axes, values: Mapping[int, Sequence[float]], look: _Look, label: str | None, banded: bool
) -> None:
    epochs = list(values)
    axes.plot(
        epochs,
        [statistics.fmean(each) for each in values.values()],
        color=look.colour,
        linestyle=look.line,
        marker=look.marker if len(epochs) < 12 else "",
        markersize=2.5,
        label=None if label is None else _plain(label),
    )
    if banded and any(len(each) > 1 for each in values.values()):
        low, high = ([choose(each) for each in values.values()] for choose in (min, max))
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _zoom(axes: Axes, curves: Mapping[str, Mapping[int, Sequence[float]]], *also: float) -> None:
    """Lets the later half of the epochs fill the height: what the first ones do would squeeze it.

    So would a method whose end is far from the others': its name and end are written at the edge.
    """
    ends = {name: statistics.fmean(curve[max(curve)]) for name, curve in curves.items() if curve}
    far = _far_from_the_others(ends)
    values = list(also)
    for curve in (curve for name, curve in curves.items() if name not in far):
        first = max(curve, default=0) / 2 if len(curve) >= _EARLY else 0
        values += [statistics.fmean(each) for epoch, each in curve.items() if epoch > first]
    if values:
        margin = 0.08 * (max(values) - min(values)) + 0.1
        axes.set_ylim(min(values) - margin, max(values) + margin)
    low, high = axes.get_ylim()
    above = [f"\N{UPWARDS ARROW} {_plain(name)} {ends[name]:.2f}" for name in far if ends[name] > high]
    below = [f"\N{DOWNWARDS ARROW} {_plain(name)} {ends[name]:.2f}" for name in far if ends[name] < low]
    line = 0.12 * (high - low)  # the height of a name
    axes.set_ylim(low - line * len(below), high + line * len(above))
    for place, align, lines in ((0.98, "top", above), (0.02, "bottom", below)):
        if lines:
            text = "\n".join(sorted(lines))
            axes.text(0.99, place, text, transform=axes.transAxes, ha="right", va=align, fontsize=7)


def _merged(described: Sequence[Mapping[str, Any]], most: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """The sum of histograms that are cut out of one; bins are joined until at most `most` are left."""
    edges = np.unique(np.concatenate([np.asarray(one["edges"]) for one in described]).round(9))
    counts = np.zeros(len(edges) - 1)
    for one in described:
        places = np.searchsorted(edges, np.asarray(one["edges"][:-1]).round(9))
        counts[places] += one["counts"]
    width = -(-len(counts) // most)
    starts = np.arange(0, len(counts), width)
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def _figure(summary: Summary, *, rows: int, height: float, sharex: bool = True) -> tuple[Figure, np.ndarray]:
    with mpl.rc_context(STYLE):
        columns = len(summary.pairs)
        size = (COLUMN * min(columns, 3), height * rows)  # and the legend's
        figure = Shown(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex="col" if sharex else False)
        for axes, pair in zip(grid[0], summary.pairs, strict=True):
            axes.set_title(_plain(pair.title), parse_math=False)
    return figure, grid


def _legend(figure: Figure, grid: np.ndarray) -> None:
    named = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    longest = max(map(len, named), default=0)
    columns = max(1, min(4, 54 // (longest + 6)))
    figure.set_figheight(figure.get_figheight() + 0.14 * -(-len(named) // columns))
    with mpl.rc_context(STYLE):
        legend = figure.legend(
            named.values(), named, frameon=False, loc="outside lower center", ncols=columns
        )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(text: str) -> str:
    """A name as a label: one line, and not one of those that a legend leaves out."""
    line = " ".join(text.split())
    return f" {line}" if line.startswith("_") else line


def _looks(names: Sequence[str]) -> dict[str, _Look]:
    """A look for each method: a known one always has its own, and others get what is left."""
    order = [ALONE, *methods.names()]
    pairs = enumerate(itertools.product(_LINES, COLOURS))
    free = [_Look(colour, line, _MARKERS[i % len(_MARKERS)]) for i, (line, colour) in pairs]
    looks = {name: free[order.index(name) % len(free)] for name in names if name in order}
    left = [look for look in free if look not in looks.values()] or free
    for name in names:
        if name not in looks:
            look = left[zlib.crc32(name.encode()) % len(left)]
            looks[name] = look
            left = [one for one in left if one != look] or free
    return looks
