"""From run records to tables and figures that can go into a paper.

Only the files of runs are read; a run in progress is reported up to its current step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd import _markdown
from jaxkd.files.places import place
from jaxkd.files.whole import filling
from jaxkd.runs import tables
from jaxkd.runs.summary import Pretrained, RunRecord, Summary, read, summarise


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    baseline: str | None = None,
    *,
    by_name: bool = False,
) -> str:
    """Writes `report.md`, the table as `table.tex` and `table.csv`, and each figure as PNG and PDF.

    Args:
      runs: folders of runs or pretrained teachers, or folders that contain several of these, in the order of
        the table.
      out: the folder for the files; it is created.
      baseline: the method to compare with, by its name in the table; by default kd, or the students alone.
      by_name: see `summary.summarise`.

    Returns:
      The Markdown tables: methods by pairs of networks, then all runs.

    Raises:
      ValueError: no run is named, none uses the baseline, or `out` has a file of someone else with the name
        of one of the report's.
      FileNotFoundError: a folder is neither a run nor a teacher.
    """
    records = read(runs)
    summary = summarise(records, baseline, by_name=by_name)
    _require_own(place(out), summary)
    with filling(place(out)) as folder:
        return _write(records, summary, folder)


def _require_own(out: Path, summary: Summary) -> None:
    """Raises ValueError if the report would replace files that are no earlier report's."""
    earlier = out / "report.md"
    pictures = [*_CAPTIONS, *summary.distributions]
    names = ["table.tex", "table.csv", *(f"{name}.{kind}" for name in pictures for kind in ("png", "pdf"))]
    if earlier.is_file():
        found = [] if "| run " in earlier.read_text(errors="replace") else [earlier]
    else:
        found = [out / name for name in names if (out / name).exists()]
    if found:
        raise ValueError(f"{found[0]} is not of an earlier report; name another folder")


def _write(records: Sequence[RunRecord | Pretrained], summary: Summary, out: Path) -> str:
    from jaxkd.runs import figures  # matplotlib takes a while to load

    pictures = figures.save_all(summary, out)
    overview = f"{tables.markdown(summary)}\n" if summary.cells else ""
    text = f"{overview}{runs_table(records)}"
    shown = "\n".join(
        f"![{name}]({name}.png)\n\n{_CAPTIONS.get(name, _OF_DISTRIBUTION).format(images=summary.images)}\n"
        for name in pictures
    )
    notes = "\n".join(f"- {note}" for note in _notes(summary))
    below = f"{_OF_RUNS.format(images=summary.images)}\n\n{shown}"
    (out / "report.md").write_text(f"{overview}{notes}\n\n{runs_table(records)}\n{below}\n")
    (out / "table.tex").write_text(tables.latex(summary))
    (out / "table.csv").write_text(tables.as_csv(summary))
    return text


_CAPTIONS = {
    "accuracy": (
        "Accuracy on the {images} images by epoch, and its difference from the baseline: means over the "
        "seeds; for few methods, bands from the lowest to the highest seed. The vertical range is that of "
        "the later half of the epochs; methods that end far from all others are written at the edge."
    ),
    "differences": (
        "Difference from the baseline after the last epoch: dots are seeds, bars mean and 95 % interval. "
        "Grey: the range expected from the sampling of the {images} images alone, if the networks erred "
        "independently. Methods far from all others are written at the edge."
    ),
}
_OF_DISTRIBUTION = (
    "Distribution over the training images in the last epoch, all seeds together; below, the mean by epoch "
    "and 5 to 95 % of the images, shaded."
)
_OF_RUNS = (
    "The best epoch, chosen on the {images} images themselves, is given for comparison only. The method's "
    "metrics (temperature, correlation of student and teacher logits, ...) are means over the last epoch's "
    "training images, with 5 and 95 % quantiles if they vary. images/s: training, without compilation and "
    "evaluation."
)


def _notes(summary: Summary) -> list[str]:
    """Notes on the meaning and the limits of the table's numbers."""
    held_out = {bool(run.config.get("holdout")) for cell in summary.cells.values() for run in cell.runs}
    images = {True: "the training images that were held out", False: "the whole test split"}
    where = " or, of some runs, ".join(images[one] for one in sorted(held_out)) or images[False]
    notes = [f"Accuracy: top-1 on {where}, in percent, after the last epoch."]
    counts = sorted({cell.spread.number for cell in summary.cells.values() if cell.spread})
    if counts[-1:] > [1]:
        notes.append(
            f"Mean ± standard deviation (of the sample, divided by n - 1) over {counts[-1]} seeds"
            + (", or over n seeds where that is given." if len(counts) > 1 else ".")
        )
    for pair in summary.pairs:
        about = f"{_markdown.escape(pair.title)}, {_markdown.escape(pair.data)}"
        about += f", {pair.epochs} epochs" if pair.epochs else ""
        if (error := summary.sampling_error(pair)) is not None:
            notes.append(
                f"{about}: one standard error of an accuracy, from the sampling of the {summary.images} "
                f"images, is {error:.2f} points."
            )
        if unlike := summary.unlike(pair):
            words = (f"{name} ({'; '.join(f'{value!s:.40}' for value in unlike[name])})" for name in unlike)
            notes.append(
                f"{about}: the rows differ in more than the method: {_markdown.escape(', '.join(words))}."
            )
        if verdicts := summary.verdicts(pair):
            words = (f"{verdict}: {', '.join(map(_listed, names))}" for verdict, names in verdicts.items())
            notes.append(f"{about}, against {_markdown.escape(summary.baseline or '')}: {'; '.join(words)}.")
    if summary.baseline is not None:
        notes.append(
            "Differences are paired by seed, with the 95 % interval of Student's t over the seeds. Each "
            "interval is for one comparison: of twenty methods as good as the baseline, one is expected to "
            "have an interval without 0."
        )
    if summary.repeated:
        names = ", ".join(map(_markdown.escape, summary.repeated))
        notes.append(f"Omitted above, since they repeat a configuration and seed: {names}.")
    return notes


def _listed(name: str) -> str:
    """A name in a list with commas."""
    return f'"{_markdown.escape(name)}"' if "," in name else _markdown.escape(name)


def runs_table(records: Sequence[RunRecord | Pretrained]) -> str:
    """The Markdown table of all runs, one row each."""
    runs = [record for record in records if isinstance(record, RunRecord)]
    metrics = list(dict.fromkeys(name for run in runs for name in run.result.get("metrics", {})))
    head = [
        "run",
        "model",
        "method",
        "epochs",
        "accuracy",
        "best",
        *map(_markdown.escape, metrics),
        "images/s",
    ]
    return _markdown.table(head, [_row(record, metrics) for record in records], left=3)


def _row(record: RunRecord | Pretrained, metrics: Sequence[str]) -> list[str]:
    name = _markdown.escape(record.name)
    if isinstance(record, Pretrained):
        shown = "-" if record.accuracy is None else f"{record.accuracy:.2f}"
        return [name, _markdown.escape(record.model), "pretrained", "-", shown, *["-"] * (len(metrics) + 2)]
    accuracies = record.tests
    speed = record.result.get("images_per_second")
    return [
        name if record.result else f"{name} (running)",
        _markdown.escape(record.student),
        _markdown.escape(record.method),
        str(max(accuracies, default=0)),
        f"{accuracies[max(accuracies)]:.2f}" if accuracies else "-",
        f"{max(accuracies.values()):.2f}" if accuracies else "-",
        *(_shown(record.result.get("metrics", {}).get(metric)) for metric in metrics),
        f"{speed:.0f}" if speed else "-",
    ]


def _shown(metric: dict[str, Any] | None) -> str:
    """A metric of a result, as a table cell."""
    if metric is None or "mean" not in metric:  # an own metric describes itself as it likes
        return "-"
    if "counts" not in metric:
        return f"{metric['mean']:.3f}"
    if len(metric["counts"]) == 1:  # one value falls into one bin
        return f"{metric['mean']:.2f}"
    outside = f"; {metric['outside']:.0%} outside the histogram" if metric.get("outside") else ""
    return f"{metric['mean']:.2f} ({metric['p5']:.2f}-{metric['p95']:.2f}{outside})"
