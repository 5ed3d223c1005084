"""Records of runs, read and arranged: pairs of networks as columns, methods as rows, seeds grouped."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkd import storage, teachers
from jaxkd.files.places import place
from jaxkd.runs.record import CONFIG, RESULT, read_either, read_metrics
from jaxkd.runs.statistics import Difference, Spread, paired_difference, sampling_error, spread

ALONE = "alone"  # the row of students trained on labels
# Two runs that differ only in these differ only by chance.
_BY_CHANCE = ("seed", "teacher_logits")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The contents of a run's folder.

    Attributes:
      name: the folder's name.
      config: the run's options.
      identity: everything that determines its result.
      result: its result; empty if it has not ended.
      lines: the lines of metrics.jsonl.
    """

    name: str
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    result: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    @property
    def student(self) -> str:
        """The trained architecture."""
        return str(self.config.get("model") or self.config.get("student", "?"))

    @property
    def teacher(self) -> str | None:
        """The teacher's name; None for a run on labels."""
        named = self.result.get("teacher") or self.config.get("teacher")
        return named and Path(named).name

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.config.get("method", "labels"))

    @property
    def data(self) -> str:
        """The dataset's name."""
        return str(self.identity.get("data") or self.config.get("data", "?"))

    @property
    def epochs(self) -> int | None:
        """The run's total number of epochs."""
        return self.identity.get("epochs") or self.config.get("epochs")

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.identity.get("seed", 0))

    @property
    def accuracy(self) -> float | None:
        """Top-1 on the test split after the last epoch, in percent; None until the run has ended."""
        return self.result.get("last_accuracy")

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The lines of a kind, "train" or "test"."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def tests(self) -> dict[int, float]:
        """Test accuracy by epoch, in percent."""
        return {line["epoch"]: line["accuracy"] for line in self.of("test")}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A teacher's folder that is reported with the runs."""

    name: str
    model: str
    accuracy: float | None


def read(folders: str | Path | Sequence[str | Path]) -> list[RunRecord | Pretrained]:
    """The records in some folders: of runs or pretrained teachers, or folders that contain several of these.

    A generator (the first stage of MEKD) among them has no accuracy, and is skipped.

    Raises:
      ValueError: no folder is named, or none has a run or a teacher.
      FileNotFoundError: a folder is neither a run nor a teacher.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    if not folders:
        raise ValueError("no run is named; name the folders of one or more runs")
    found = [_read(one) for folder in folders for one in _folders(place(folder))]
    if not found:
        raise ValueError(
            f"{', '.join(map(str, folders))}: an earlier report, and no runs; name their folders"
        )
    return [one for one in found if isinstance(one, Pretrained) or "stage" not in one.identity]


def _folders(folder: Path) -> list[Path]:
    """The folder itself, if it is a run or a teacher; otherwise the runs and teachers in it."""
    if _is_one(folder) or not folder.is_dir():
        return [folder]
    if found := sorted(inner for inner in folder.iterdir() if _is_one(inner)):
        return found
    return [] if (folder / "report.md").is_file() else [folder]  # an earlier report, matched by `runs/*`


def _is_one(folder: Path) -> bool:
    return (folder / "teacher.json").is_file() or (folder / "config.json").is_file()


def _read(folder: Path) -> RunRecord | Pretrained:
    try:
        return _read_whole(folder)
    except storage.DamagedError as error:
        raise storage.DamagedError(f"{error}; leave {folder} out of the report, or restore it") from error


def _read_whole(folder: Path) -> RunRecord | Pretrained:
    if (folder / "teacher.json").is_file():
        entry = teachers.describe(folder)
        return Pretrained(entry.name, entry.description.model, entry.description.test_accuracy)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is the folder of neither a run nor a teacher: it lacks config.json and teacher.json"
        )
    stored = read_either(folder / "config.json", CONFIG)
    if stored.get("config") is None:
        raise ValueError(f"{folder / 'config.json'} does not belong to a run")
    result = folder / "result.json"
    return RunRecord(
        name=folder.name,
        config=stored["config"],
        identity=stored.get("identity", {}),
        result=read_either(result, RESULT) if result.is_file() else {},
        lines=read_metrics(folder),
    )


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """A column: networks, data and length of comparable runs.

    Attributes:
      teacher: its name; None for a student trained on labels alone.
      student: its architecture.
      data: the dataset's name.
      epochs: the number of epochs of each run.
    """

    teacher: str | None
    student: str
    data: str
    epochs: int | None

    @property
    def title(self) -> str:
        """The networks, in words."""
        return self.student if self.teacher is None else f"{self.teacher} to {self.student}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of a method on a pair that differ only by chance: at most one per seed."""

    runs: tuple[RunRecord, ...]

    @property
    def accuracies(self) -> dict[int, float]:
        """Accuracies of the finished runs by seed, in percent."""
        return {run.seed: run.accuracy for run in self.runs if run.accuracy is not None}

    @property
    def spread(self) -> Spread | None:
        """Mean and deviation of the accuracies; None if no run has finished."""
        return spread(list(self.accuracies.values())) if self.accuracies else None

    @property
    def test_examples(self) -> int | None:
        """The number of test images."""
        return next((run.result["test_examples"] for run in self.runs if "test_examples" in run.result), None)


@dataclasses.dataclass(frozen=True)
class Summary:
    """A table of runs.

    Attributes:
      pairs: the columns.
      methods: the rows, the students alone first.
      cells: by row and column; missing if there is no run.
      teachers: the teachers' accuracies by column, if known.
      baseline: the row to compare with; None if there is nothing to compare.
      repeated: names of runs that repeat another run's configuration and seed; they are omitted.
    """

    pairs: tuple[Pair, ...]
    methods: tuple[str, ...]
    cells: Mapping[tuple[str, Pair], Cell]
    teachers: Mapping[Pair, float]
    baseline: str | None
    repeated: tuple[str, ...] = ()

    @property
    def images(self) -> str:
        """What the accuracies are of: "test" images, or "held-out" ones of the training split, or both."""
        runs = [run for cell in self.cells.values() for run in cell.runs]
        words = {"held-out" if run.config.get("holdout") else "test" for run in runs}
        return " or ".join(sorted(words)) or "test"

    @property
    def distributions(self) -> list[str]:
        """The names of all metrics that are distributions."""
        runs = (run for cell in self.cells.values() for run in cell.runs)
        metrics = (metric for run in runs for metric in run.result.get("metrics", {}).items())
        return list(dict.fromkeys(name for name, metric in metrics if metric.get("counts")))

    def difference(self, method: str, pair: Pair) -> Difference | None:
        """A method's accuracy minus the baseline's, over their common seeds; None if there are none."""
        if self.baseline is None or method == self.baseline:
            return None
        one, other = self.cells.get((method, pair)), self.cells.get((self.baseline, pair))
        return paired_difference(one.accuracies, other.accuracies) if one and other else None

    def sampling_error(self, pair: Pair) -> float | None:
        """The standard error of an accuracy in this column, from sampling the test images; in points."""
        cells = [cell for (_, column), cell in self.cells.items() if column == pair and cell.spread]
        counts = [cell.test_examples for cell in cells if cell.test_examples]
        if not counts:
            return None
        return sampling_error(
            statistics.fmean(cell.spread.mean for cell in cells if cell.spread), min(counts)
        )

    def difference_by_sampling(self, pair: Pair) -> float | None:
        """The 95 % range of the difference of two accuracies from the sampling of the test images alone.

        `1.96 sqrt(2)` standard errors: as if the networks erred independently, which overestimates it.
        """
        error = self.sampling_error(pair)
        return None if error is None else 1.96 * math.sqrt(2) * error

    def unlike(self, pair: Pair) -> dict[str, list[Any]]:
        """What a column's runs do not have in common, beside methods and seeds: values by their names."""
        found: dict[str, dict[str, Any]] = {}
        for (_, column), cell in self.cells.items():
            for name, value in cell.runs[0].identity.items() if column == pair else ():
                if name not in _BY_CHANCE and name.partition(".")[0] != "method":
                    found.setdefault(name, {})[json.dumps(value)] = value
        return {name: list(values.values()) for name, values in found.items() if len(values) > 1}

    def verdicts(self, pair: Pair) -> dict[str, list[str]]:
        """Verdicts on the differences from the baseline: maps each verdict to its methods."""
        found: dict[str, list[str]] = {}
        within = self.difference_by_sampling(pair) or 0.0
        for method in self.methods:
            if (difference := self.difference(method, pair)) is None:
                continue
            if difference.interval is None:
                verdict = "one seed, no interval"
            elif not difference.excludes_zero:
                verdict = "not significant (the interval contains 0)"
            else:
                verdict = "higher" if difference.mean > 0 else "lower"
                if abs(difference.mean) < within:
                    verdict += f", by less than the {within:.1f} points that the sampling of the "
                    verdict += f"{self.images} images explains"
            found.setdefault(verdict, []).append(method)
        return found


def summarise(
    records: Iterable[RunRecord | Pretrained], baseline: str | None = None, *, by_name: bool = False
) -> Summary:
    """Arranges runs into a table.

    Args:
      records: records of runs; pretrained teachers are ignored.
      baseline: the method to compare with, by its name in the table; by default kd, or the students alone.
      by_name: whether rows are named after runs, without networks and seed, as in a grid; by default they are
        named after methods, if each method occurs once.

    Raises:
      ValueError: no run uses that method.
    """
    runs = [record for record in records if isinstance(record, RunRecord)]
    groups: dict[str, dict[int, RunRecord]] = {}
    repeated = []
    for run in runs:
        decisive = {key: value for key, value in run.identity.items() if key not in _BY_CHANCE}
        key = json.dumps(decisive, sort_keys=True) if decisive else run.name
        known = groups.setdefault(key, {})
        if run.seed in known and (known[run.seed].result or not run.result):
            repeated.append(run.name)
        else:
            known[run.seed] = run
    cells = [Cell(tuple(group.values())) for group in groups.values()]
    pairs = tuple(dict.fromkeys(_pair(cell) for cell in cells if _pair(cell).teacher is not None))
    columns = []
    for cell in cells:
        own = _pair(cell)
        # A student alone is in the column of each of its teachers.
        alike = [pair for pair in pairs if dataclasses.replace(pair, teacher=None) == own]
        columns.append([own] if own.teacher is not None else alike or [own])
    labels = _labels(cells, columns, by_name)
    table = {
        (label, pair): cell
        for cell, own_columns, label in zip(cells, columns, labels, strict=True)
        for pair in own_columns
    }
    alone = {label for cell, label in zip(cells, labels, strict=True) if _method(cell) == ALONE}
    methods = sorted(dict.fromkeys(labels), key=lambda label: label not in alone)
    compared = [name for name in (baseline, "kd", ALONE) if name in methods]
    if baseline is not None and baseline not in methods:
        raise ValueError(f"no run uses the baseline {baseline}; available: {', '.join(methods) or 'none'}")
    accuracies = {
        _pair(cell): run.result["teacher_accuracy"]
        for cell in cells
        for run in cell.runs
        if run.result.get("teacher_accuracy") is not None
    }
    return Summary(
        pairs=tuple(dict.fromkeys(pair for _, pair in table)),
        methods=tuple(methods),
        cells=table,
        teachers=accuracies,
        baseline=compared[0] if compared and len(methods) > 1 else None,
        repeated=tuple(repeated),
    )


def _pair(cell: Cell) -> Pair:
    run = cell.runs[0]
    return Pair(run.teacher, run.student, run.data, run.epochs)


def _method(cell: Cell) -> str:
    method = cell.runs[0].method
    return ALONE if method == "labels" else method


def _labels(cells: Sequence[Cell], columns: Sequence[Sequence[Pair]], by_name: bool) -> list[str]:
    """The name of each cell's row: its method, or its runs' name if a column has the method twice."""
    places = collections.Counter(
        (_method(cell), pair) for cell, own in zip(cells, columns, strict=True) for pair in own
    )
    twice = {method for (method, _), count in places.items() if count > 1}
    known = {method for method, _ in places}
    taken: set[tuple[str, Pair]] = set()
    labels = []
    for cell, own in zip(cells, columns, strict=True):
        method = label = _method(cell)
        if method in twice or (by_name and method != ALONE):
            label = _run_name(cell.runs[0], _pair(cell))
            if method == ALONE and label != ALONE:
                label = f"{ALONE} ({label})"
            elif not by_name and label in known - {method}:
                label = f"{label} ({method})"  # not to be taken for a run of that other method
        plain, number = label, 1
        while any((label, pair) in taken for pair in own):
            number += 1
            label = f"{plain} ({number})"
        taken |= {(label, pair) for pair in own}
        labels.append(label)
    return labels


def _run_name(run: RunRecord, pair: Pair) -> str:
    """A run's name without its seed and its networks."""
    name = re.sub(r"-?seed\d+$", "", run.name)
    return name.removeprefix(f"{pair.teacher}-").removeprefix(f"{pair.student}-") or run.name
