"""An experiment: students alone and distilled, for pairs of networks, methods and seeds, and its report.

The runs are ordinary ones, in folders of one folder: the same call goes on where it was stopped, and a longer
list of methods adds to what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkd import methods as known_methods
from jaxkd import models, teachers
from jaxkd.progress import Say, print_line
from jaxkd.runs.config import DistillConfig, TrainConfig
from jaxkd.runs.report import report
from jaxkd.runs.run import distill, train


def grid(
    folder: str | Path,
    *,
    pairs: Sequence[tuple[str, str]],
    methods: Mapping[str, Mapping[str, Any]],
    alone: bool = True,
    say: Say = print_line,
    **options: Any,
) -> str:
    """Makes the runs of an experiment, one after the other, and reports them.

    Args:
      folder: of the runs and, under `report`, of the table and the figures.
      pairs: teachers (names or folders) and students (names).
      methods: a run's name to the options of `DistillConfig` that make it: `{"kd": {"method": "kd"}}`.
      alone: whether every student is also trained on labels alone.
      say: where progress goes.
      **options: of all runs: data, epochs, seeds, batch_size, ...

    Returns:
      The Markdown table.

    Raises:
      ValueError: a name is unknown, or a teacher does not fit the data; before anything is trained.
    """
    folder = Path(folder)
    several = len(pairs) > 1
    planned: list[TrainConfig | DistillConfig] = []
    for student in dict.fromkeys(student for _, student in pairs) if alone else ():
        own = folder / (f"{student}-alone" if several else "alone")
        planned.append(TrainConfig(model=student, run=own, **options))
    for teacher, student in pairs:
        for name, chosen in methods.items():
            own = folder / (f"{Path(teacher).name}-{student}-{name}" if several else name)
            planned.append(DistillConfig(teacher=teacher, student=student, run=own, **{**options, **chosen}))
    known = {teacher: teachers.load(teacher) for teacher, _ in pairs}
    _check(planned, known)
    folders = [teachers.locate(teacher) for teacher in known]
    for config in planned:
        # By name, so that every run can be resumed alone from its config.json.
        if isinstance(config, TrainConfig):
            train(config, say=say)
        else:
            distill(config, say=say)
        folders += [each.folder for each in config.each_seed()]
    return report(folders, folder / "report")


def _check(planned: Sequence[TrainConfig | DistillConfig], known: Mapping[str, teachers.Teacher]) -> None:
    """Looks at all names before anything is trained: hours later would be too late."""
    for config in planned:
        models.create(config.student if isinstance(config, DistillConfig) else config.model)
        if isinstance(config, DistillConfig):
            known_methods.create(config.method, **config.method_options)
    dataset = planned[0].load()
    for teacher in known.values():
        teacher.require_fit(dataset)
