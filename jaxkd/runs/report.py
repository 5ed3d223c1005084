"""From run records to a Markdown table and figures that can go into a paper.

Only the files of runs are read; a run that is still going on is reported as far as it is.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd import _markdown
from jaxkd._extras import require

require("train", "matplotlib")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from jaxkd import teachers  # noqa: E402
from jaxkd.runs.record import CONFIG, RESULT, read_either, read_metrics  # noqa: E402

_LONG = 12  # epochs
# Colours that remain apart for colour-blind readers and in grey (Okabe and Ito).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")


def report(runs: Sequence[str | Path], out: str | Path) -> str:
    """Writes `report.md`, `accuracy.png`, and a figure of each metric that is a distribution.

    Args:
      runs: folders of runs, of pretrained teachers, or of several of these, in the order of the table.
      out: the folder for the files; it is made.

    Returns:
      The Markdown table.

    Raises:
      ValueError: no run is named.
      FileNotFoundError: a folder is neither.
    """
    if not runs:
        raise ValueError("no run is named; name the folders of one or more runs")
    records = [_read(folder) for run in runs for folder in _folders(Path(run))]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    text = table(records)
    figures = ["accuracy.png"]
    _accuracy(records).savefig(out / figures[0], dpi=160)
    for name in _metrics(records):
        if any("counts" in record["result"].get("metrics", {}).get(name, {}) for record in records):
            figures.append(f"{name}.png")
            _distribution(records, name).savefig(out / figures[-1], dpi=160)
    pictures = "\n".join(f"![{Path(name).stem}]({name})" for name in figures)
    notes = _sampling_error(records) + (
        "Accuracy is top-1 on the whole test split, in percent, after the last epoch; the best epoch, chosen "
        "on the test split itself, is given for comparison only. The method's metrics (temperature, "
        "correlation of student and teacher logits, ...) are means over the last epoch's training images, "
        "with 5 and 95 % quantiles where they are distributions. images/s: training, without compilation and "
        "evaluation."
    )
    (out / "report.md").write_text(f"{text}\n{notes}\n\n{pictures}\n")
    return text


def table(records: Sequence[dict[str, Any]]) -> str:
    """The Markdown table of some runs' records; runs that differ in the seed alone stand together.

    After them comes a row with mean and standard deviation (of the sample: divided by n - 1) of those that
    are finished.
    """
    metrics = _metrics(records)
    head = ["run", "model", "method", "epochs", "accuracy", "best", *metrics, "images/s"]
    rows: list[list[str]] = []
    for group in _groups(records):
        rows += [_row(record, metrics) for record in group]
        rows += [_row_of_seeds(group, metrics)] if len(group) > 1 else []
    return _markdown.table(head, rows, left=3)


def _metrics(records: Sequence[dict[str, Any]]) -> list[str]:
    """The names of all metrics that some run's method reports."""
    return list(dict.fromkeys(name for record in records for name in record["result"].get("metrics", {})))


def _folders(folder: Path) -> list[Path]:
    """The folder itself; or, if it is neither of a run nor of a teacher, those in it that are."""
    if _is_one(folder) or not folder.is_dir():
        return [folder]
    return sorted(inner for inner in folder.iterdir() if _is_one(inner)) or [folder]


def _is_one(folder: Path) -> bool:
    return (folder / "teacher.json").is_file() or (folder / "config.json").is_file()


def _groups(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Runs of one configuration and several seeds, in the order of the first of each; others alone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        identity = {key: value for key, value in record.get("identity", {}).items() if key != "seed"}
        key = json.dumps(identity, sort_keys=True) if identity else record["name"]
        groups.setdefault(key, []).append(record)
    return [
        part for group in groups.values() for part in ([group] if _are_seeds(group) else [[r] for r in group])
    ]


def _are_seeds(group: Sequence[dict[str, Any]]) -> bool:
    """Whether there are finished runs of several seeds, and none of them twice."""
    seeds = [record.get("identity", {}).get("seed") for record in group if record["result"]]
    return len(seeds) > 1 and None not in seeds and len(set(seeds)) == len(seeds)


def _row_of_seeds(group: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    done = [record for record in group if record["result"]]
    names = {re.sub(r"-?seed\d+$", "", record["name"]) for record in group}
    name = f"{names.pop()}, mean" if len(names) == 1 else "mean"

    def spread(values: list[Any], digits: int = 2) -> str:
        if len(values) < 2 or None in values:
            return "-"
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    first = _row(group[0], ())
    results = [record["result"] for record in done]
    return [
        f"**{name} of {len(done)} seeds**",
        *first[1:3],
        first[3],
        spread([result["last_accuracy"] for result in results]),
        spread([result["best_accuracy"] for result in results]),
        *(
            spread([result.get("metrics", {}).get(name, {}).get("mean") for result in results], 3)
            for name in metrics
        ),
        "-",
    ]


def _sampling_error(records: Sequence[dict[str, Any]]) -> str:
    """A sentence on how far accuracies can differ by the choice of the test images alone."""
    results = [record["result"] for record in records if record["result"]]
    if not results:
        return ""
    count = min(result["test_examples"] for result in results)
    share = sum(result["last_accuracy"] for result in results) / len(results) / 100
    error = 100 * math.sqrt(share * (1 - share) / count)
    return (
        f"With {count:,} test images, one standard error of these accuracies is {error:.2f} points, and runs "
        "with other seeds differ besides: smaller differences say nothing. "
    )


def _read(folder: Path) -> dict[str, Any]:
    if (folder / "teacher.json").is_file():
        return _read_teacher(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of a run, nor of a teacher: it lacks config.json and teacher.json"
        )
    stored = read_either(folder / "config.json", CONFIG)
    config, identity = stored.get("config"), stored.get("identity", {})
    if config is None:
        raise ValueError(f"{folder / 'config.json'} is not a run's")
    result_file = folder / "result.json"
    result = read_either(result_file, RESULT) if result_file.is_file() else {}
    tests = [line for line in read_metrics(folder) if line["kind"] == "test"]
    return {"name": folder.name, "config": config, "identity": identity, "result": result, "tests": tests}


def _read_teacher(folder: Path) -> dict[str, Any]:
    entry = teachers.describe(folder)
    return {
        "name": entry.name,
        "config": {"model": entry.description.model, "method": "pretrained"},
        "result": {},
        "tests": [],
        "pretrained_accuracy": entry.description.test_accuracy,
    }


def _row(record: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    if "pretrained_accuracy" in record:
        accuracy = record["pretrained_accuracy"]
        shown = "-" if accuracy is None else f"{accuracy:.2f}"
        return [
            record["name"],
            record["config"]["model"],
            "pretrained",
            "-",
            shown,
            "-",
            *["-"] * len(metrics),
            "-",
        ]
    config, result, tests = record["config"], record["result"], record["tests"]
    accuracies = [line["accuracy"] for line in tests]
    epoch = tests[-1]["epoch"] if tests else 0
    running = "" if result else " (running)"
    return [
        record["name"] + running,
        config.get("model") or config.get("student", "?"),
        config.get("method", "labels"),
        str(epoch),
        f"{accuracies[-1]:.2f}" if accuracies else "-",
        f"{max(accuracies):.2f}" if accuracies else "-",
        *(_shown(result.get("metrics", {}).get(name)) for name in metrics),
        f"{result['images_per_second']:.0f}" if result.get("images_per_second") else "-",
    ]


def _shown(metric: dict[str, Any] | None) -> str:
    """A metric of a result, in a cell."""
    if metric is None:
        return "-"
    if "counts" not in metric:
        return f"{metric['mean']:.3f}"
    if len(metric["counts"]) == 1:  # one value falls into one bin
        return f"{metric['mean']:.2f}"
    return f"{metric['mean']:.2f} ({metric['p5']:.2f}-{metric['p95']:.2f})"


def _accuracy(records: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _figure()
    groups = _groups(records)
    for group, colour in zip(groups, _cycle(len(groups)), strict=True):
        label = _row_of_seeds(group, ())[0].strip("*") if len(group) > 1 else group[0]["name"]
        accuracies = [accuracy for record in group if (accuracy := _last_accuracy(record)) is not None]
        if accuracies:
            label += f": {statistics.mean(accuracies):.2f} %"
        for record in group:
            if record.get("pretrained_accuracy") is not None:
                axes.axhline(record["pretrained_accuracy"], color=colour, linestyle="--", label=label)
            else:
                epochs = [line["epoch"] for line in record["tests"]]
                values = [line["accuracy"] for line in record["tests"]]
                marker = "o" if len(epochs) < _LONG else ""
                axes.plot(epochs, values, color=colour, label=label, marker=marker, alpha=len(group) ** -0.5)
            label = ""  # one line in the legend for all seeds
    # In a long run the first epochs would squeeze what the figure is for into its upper edge.
    late = [line["accuracy"] for r in records for line in r["tests"][_early_epochs(r) :]]
    known = late + [r["pretrained_accuracy"] for r in records if r.get("pretrained_accuracy") is not None]
    low, high = min(known, default=0.0), max(known, default=100.0)
    axes.set_ylim(low - 0.15 * (high - low) - 0.5, high + 0.1 * (high - low) + 0.5)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="Test accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def _last_accuracy(record: dict[str, Any]) -> float | None:
    tests = record["tests"]
    return tests[-1]["accuracy"] if tests else record.get("pretrained_accuracy")


def _early_epochs(record: dict[str, Any]) -> int:
    count = len(record["tests"])
    return count // 3 if count >= _LONG else 0


def _distribution(records: Sequence[dict[str, Any]], name: str) -> Figure:
    figure, axes = _figure()
    groups = _groups(records)
    for group, colour in zip(groups, _cycle(len(groups)), strict=True):
        # One seed stands for the others: their distributions hardly differ, and would hide each other.
        record = next((r for r in group if r["result"].get("metrics", {}).get(name)), group[0])
        metric = record["result"].get("metrics", {}).get(name, {})
        if not metric.get("counts"):
            continue
        label = f"{record['name']}: mean {metric['mean']:.2f}"
        if len(metric["counts"]) == 1:  # a fixed value: one line says it
            axes.axvline(metric["mean"], color=colour, linestyle="--", label=label)
            continue
        edges, counts = _merged(metric["edges"], metric["counts"])
        density = [100 * count / sum(counts) for count in counts]
        axes.stairs(density, edges, color=colour, fill=True, alpha=0.45, label=label)
    title = f"{name.capitalize()} in the last epoch"
    axes.set(xlabel=name, ylabel="share of training images (%)", title=title)
    axes.margins(x=0.05)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def _merged(
    edges: Sequence[float], counts: Sequence[float], most: int = 40
) -> tuple[list[float], list[float]]:
    """Joins neighbouring bins until at most `most` are left."""
    width = -(-len(counts) // most)
    starts = range(0, len(counts), width)
    return [*(edges[i] for i in starts), edges[-1]], [sum(counts[i : i + width]) for i in starts]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _cycle(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]
