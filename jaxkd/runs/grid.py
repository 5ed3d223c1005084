"""An experiment: students alone and distilled, for pairs of networks, methods and seeds, and its report.

The runs are ordinary ones, in subfolders of one folder: the same call resumes them, and a longer list of
methods adds runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxkd import methods as known_methods
from jaxkd import models, teachers
from jaxkd.files.places import place as placed
from jaxkd.progress import Lasting, Say, print_line
from jaxkd.runs.config import DistillConfig, TrainConfig
from jaxkd.runs.kept import find_kept, keep
from jaxkd.runs.report import report
from jaxkd.runs.run import devices_of, distill, train
from jaxkd.runs.summary import ALONE
from jaxkd.teachers import hub


class Planned(NamedTuple):
    """A run of a grid: its options, and its method if that is an object."""

    config: TrainConfig | DistillConfig
    method: known_methods.Method | None = None


def grid(
    folder: str | Path,
    *,
    pairs: Sequence[tuple[str, str]],
    methods: Mapping[str, Mapping[str, Any]],
    alone: bool = True,
    records: str | Path | None = None,
    reuse: Sequence[Path] = (),
    baseline: str | None = None,
    cache: str = "auto",
    say: Say = print_line,
    **options: Any,
) -> str:
    """Runs an experiment, one run after the other, and reports it.

    All methods run with the first seed, then with the second: so there is a table as early as possible.

    Args:
      folder: the folder of the runs.
      pairs: teachers (names or folders) and students (names).
      methods: maps a run's name to its options of `DistillConfig`: `{"kd": {"method": "kd"}}`; the method may
        also be a `Method`, and is by default the one of the run's name.
      alone: whether every student is also trained on labels only.
      records: a folder for the record of each finished run (config.json, metrics.jsonl, result.json); a run
        with an existing record is not repeated.  The tables and figures are in `report`, in this folder or
        else in `folder`.
      reuse: folders of other grids' records: a run with the same options and teacher is copied from there.
      baseline: see `report`.
      cache: the source of the teachers' logits, as for `DistillConfig`; with "fill", the first run of a seed
        stores them for the others.
      say: callback for progress lines.
      **options: options of all runs: data, epochs, seeds, batch_size, ...

    Returns:
      The Markdown tables.

    Raises:
      ValueError: before anything is trained: a name is unknown, the baseline is not in the grid, options
        contradict each other, a teacher does not fit the data, or a record is of another run.
      TypeError: `methods` is something else.
    """
    if not all(isinstance(one, Mapping) for one in (methods, *getattr(methods, "values", list)())):
        raise TypeError(
            f'methods must map names to options, such as {{"kd": {{"method": "kd"}}}}, got {methods!r}'
        )
    rows = [*([ALONE] if alone else []), *methods]
    if baseline is not None and baseline not in rows:
        raise ValueError(f"baseline {baseline} is no row of this grid; choose one of {', '.join(rows)}")
    folder = placed(folder)
    known = {teacher: teachers.load(teacher) for teacher, _ in pairs}
    # Record names contain the seed even for one seed: more seeds may be added later.
    planned = _plan(folder, pairs, known, methods, alone, cache, options, recorded=records is not None)
    _check(planned, known)
    places = {
        run.config.folder: placed(records) / run.config.folder.name if records else None for run in planned
    }
    done = set()
    for run in planned:
        place = places[run.config.folder]
        if place and find_kept(run.config, place, _digest(run, known), run.method):
            done.add(run.config.folder)
    for run in planned:
        config, place = run.config, places[run.config.folder]
        if place and config.folder not in done and (twin := _twin(run, reuse, _digest(run, known))):
            keep(twin, place)
            done.add(config.folder)
        if config.folder in done:
            say(Lasting(f"{place} is done already"))
            continue
        # By name, so that every run can be resumed alone from its config.json.
        if isinstance(config, TrainConfig):
            train(config, say=say)
        else:
            distill(config, method=run.method, say=say)
        if place:
            keep(config.folder, place)
    folders = [place or folder for folder, place in places.items()]
    out = placed(records or folder) / "report"
    of_teachers = [teachers.locate(name) for name in known if not hub.is_address(name)]
    return report([*of_teachers, *folders], out, baseline, by_name=True)


def _plan(
    folder: Path,
    pairs: Sequence[tuple[str, str]],
    known: Mapping[str, teachers.Teacher],
    methods: Mapping[str, Mapping[str, Any]],
    alone: bool,
    cache: str,
    options: Mapping[str, Any],
    *,
    recorded: bool,
) -> list[Planned]:
    """The runs, each of one seed: seed by seed, the students alone before the others."""
    several = len(pairs) > 1
    planned: list[Planned] = []
    for student in dict.fromkeys(student for _, student in pairs) if alone else ():
        own = folder / (f"{student}-alone" if several else "alone")
        planned.append(Planned(TrainConfig(model=student, run=own, **options)))
    for name, chosen in methods.items():
        for teacher, student in pairs:
            own = folder / (f"{known[teacher].name}-{student}-{name}" if several else name)
            method = chosen.get("method", name)
            given = method if isinstance(method, known_methods.Method) else None
            named = {"method": known_methods.title(given) if given else method}
            if given and "method_options" in chosen:
                raise ValueError(
                    f"method_options of row {name} would have no effect beside a Method; put them into that"
                )
            config = DistillConfig(
                teacher=teacher, student=student, run=own, **{**options, "cache": cache, **chosen, **named}
            )
            planned.append(Planned(config, given))
    folders = [run.config.folder for run in planned]
    if twice := sorted({str(one) for one in folders if folders.count(one) > 1}):
        raise ValueError(
            f"two runs of the grid would have the folder {twice[0]}; rename the method, or the folder of the "
            "teacher"
        )
    seeds = zip(*(run.config.each_seed(named=recorded) for run in planned), strict=True)
    return [
        Planned(config, run.method) for of_seed in seeds for config, run in zip(of_seed, planned, strict=True)
    ]


def _check(planned: Sequence[Planned], known: Mapping[str, teachers.Teacher]) -> None:
    """Checks all names before anything is trained: hours later would be too late."""
    for config, method in planned:
        models.create(config.student if isinstance(config, DistillConfig) else config.model)
        if isinstance(config, DistillConfig) and method is None:
            known_methods.create(config.method, **config.method_options)
        config.recipe(1, 1).transformation()
        devices_of(config)
    dataset = planned[0].config.load()
    for teacher in known.values():
        teacher.require_fit(dataset)


def _twin(run: Planned, folders: Sequence[Path], digest: str | None) -> Path | None:
    """A record of a run with the same options and teacher, in one of several folders of records."""
    for record in (record for folder in folders for record in sorted(folder.glob("*/"))):
        with contextlib.suppress(ValueError):
            if find_kept(run.config, record, digest, run.method):
                return record
    return None


def _digest(run: Planned, known: Mapping[str, teachers.Teacher]) -> str | None:
    if not isinstance(run.config, DistillConfig):
        return None
    teacher, size = known[run.config.teacher], run.config.teacher_size
    return (teacher if size is None else teacher.at_size(size)).digest
