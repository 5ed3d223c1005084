"""Records of finished runs, kept apart from their checkpoints: small enough for a repository.

A kept record is a run's config.json, metrics.jsonl and result.json.  It stands for the run: a grid that finds
it does not make the run again, on whatever machine.
"""

from __future__ import annotations

from pathlib import Path

from jaxkd.differences import describe_differences, differing_keys
from jaxkd.runs.config import DistillConfig, TrainConfig
from jaxkd.runs.record import Record, Result
from jaxkd.storage import read_json, write_text

FILES = ("config.json", "metrics.jsonl", "result.json")  # in the order of writing: the result says "done"


def keep(run: Path, folder: Path) -> None:
    """Copies the record of a finished run.

    Args:
      run: the run's folder.
      folder: of the record; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        write_text(folder / name, (run / name).read_text())


def find_kept(config: TrainConfig | DistillConfig, folder: Path, teacher_digest: str | None) -> Result | None:
    """What a run ended with, from its kept record.

    Args:
      config: the run's options.
      folder: of the record.
      teacher_digest: of the teacher; None without one.

    Returns:
      The result; None if no finished run is recorded there.

    Raises:
      ValueError: the record is of a run with other options or another teacher.
    """
    if not (folder / "config.json").is_file() or (done := Record(folder).result()) is None:
        return None
    contents = read_json(folder / "config.json")
    try:
        stored = type(config)(**contents["config"])
    except (KeyError, TypeError):
        raise ValueError(f"{folder} records a run of another command or version; remove it") from None
    different = differing_keys(
        {**stored.decisive(), "teacher_digest": contents["identity"].get("teacher_digest")},
        {**config.decisive(), "teacher_digest": teacher_digest},
    )
    if different:
        raise ValueError(
            f"{folder} records another run; {describe_differences(different)}. Name another folder for the "
            "records, or remove that one"
        )
    return Result(done)
