"""An experiment: students alone and distilled, for pairs of networks, methods and seeds, and its report.

The runs are ordinary ones, in folders of one folder: the same call goes on where it was stopped, and a longer
list of methods adds to what is there.
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
from jaxkd.runs.run import distill, train


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
    """Makes the runs of an experiment, one after the other, and reports them.

    All methods of the first seed come first, then those of the second: a table is there as early as can be.

    Args:
      folder: of the runs.
      pairs: teachers (names or folders) and students (names).
      methods: a run's name to the options of `DistillConfig` that make it: `{"kd": {"method": "kd"}}`; the
        method may be a `Method`, too.
      alone: whether every student is also trained on labels alone.
      records: a folder that gets the record of each finished run (config.json, metrics.jsonl, result.json); a
        run whose record is there already is not made again.  In it, or else in `folder`, `report` has the
        tables and figures.
      reuse: folders of other grids' records: a run with the same options and teacher is taken from there.
      baseline: see `report`.
      cache: where the teachers' logits come from, as for `DistillConfig`; with "fill", the first run of a
        seed keeps them for the others.
      say: where progress goes.
      **options: of all runs: data, epochs, seeds, batch_size, ...

    Returns:
      The Markdown tables.

    Raises:
      ValueError: a name is unknown, a teacher does not fit the data, or a record is of another run; before
        anything is trained.
    """
    folder = placed(folder)
    known = {teacher: teachers.load(teacher) for teacher, _ in pairs}
    # Records of one seed have its name, too: those of more seeds are added later.
    planned = _plan(folder, pairs, methods, alone, cache, options, recorded=records is not None)
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
    return report([*map(teachers.locate, known), *folders], out, baseline, by_name=True)


def _plan(
    folder: Path,
    pairs: Sequence[tuple[str, str]],
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
            own = folder / (f"{Path(teacher).name}-{student}-{name}" if several else name)
            method = chosen.get("method")
            given = method if isinstance(method, known_methods.Method) else None
            named = {"method": known_methods.title(given)} if given else {}
            config = DistillConfig(
                teacher=teacher, student=student, run=own, **{**options, "cache": cache, **chosen, **named}
            )
            planned.append(Planned(config, given))
    seeds = zip(*(run.config.each_seed(named=recorded) for run in planned), strict=True)
    return [
        Planned(config, run.method) for of_seed in seeds for config, run in zip(of_seed, planned, strict=True)
    ]


def _check(planned: Sequence[Planned], known: Mapping[str, teachers.Teacher]) -> None:
    """Looks at all names before anything is trained: hours later would be too late."""
    for config, method in planned:
        models.create(config.student if isinstance(config, DistillConfig) else config.model)
        if isinstance(config, DistillConfig) and method is None:
            known_methods.create(config.method, **config.method_options)
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
    return known[run.config.teacher].digest if isinstance(run.config, DistillConfig) else None
