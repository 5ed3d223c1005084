"""The comparison that every distillation paper opens with, as ordinary runs and a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxkd.config import CompareConfig, DistillConfig, TrainConfig


def compare(config: CompareConfig, *, say: Callable[[str], None]) -> str:
    """Runs a comparison and writes its report.

    Args:
      config: what to do; the same configuration again goes on where it was stopped.
      say: where progress goes.

    Returns:
      The Markdown table.
    """
    from jaxkd import data, methods, models, teachers
    from jaxkd.report import report
    from jaxkd.training import distill, require_fit, train
    from jaxkd.training.side_by_side import choose_places

    # What does not fit together is told before hours are spent.
    choose_places(config)
    for model in (config.student, *([] if config.pretrained else [config.teacher_architecture])):
        models.create(model)
    for method in config.methods:
        methods.create(method)
    dataset = data.load(config.data, data_dir=config.data_dir)
    if config.pretrained:
        require_fit(teachers.load(config.pretrained), dataset)
    shared = config.shared()
    runs: list[Path] = []

    teacher = config.pretrained
    if teacher is None:
        runs.append(config.folder / "teacher")
        once = {**shared, "seeds": 1, "seeds_at_once": None}
        train(TrainConfig(**once, model=config.teacher_architecture, run=runs[-1]), dataset, say=say)
        teacher = str(runs[-1])
    else:
        runs.append(teachers.locate(teacher))
    alone = TrainConfig(**shared, model=config.student, run=config.folder / "alone")
    train(alone, dataset, say=say)
    runs += [each.folder for each in alone.each_seed()]
    for method in config.methods:
        run = DistillConfig(
            **shared,
            teacher=teacher,
            student=config.student,
            method=method,
            cache=config.cache,
            run=config.folder / method,
        )
        distill(run, dataset, say=say)
        runs += [each.folder for each in run.each_seed()]
    return report(runs, config.folder / "report")
