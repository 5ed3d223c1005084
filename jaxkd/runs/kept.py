"""Records of finished runs, kept without their checkpoints: small enough for a repository.

A kept record is a run's config.json, metrics.jsonl and result.json.  It replaces the run: a grid that finds
it does not repeat the run, on any machine; of data in a file or folder, the path must be the same, too.
"""

from __future__ import annotations

from pathlib import Path

from jaxkd import methods
from jaxkd.differences import describe_differences, differing_keys
from jaxkd.files import records
from jaxkd.files.whole import DamagedError, write_text
from jaxkd.methods import Method
from jaxkd.runs.config import DistillConfig, TrainConfig
from jaxkd.runs.identity import as_json
from jaxkd.runs.record import CONFIG, RESULT, Result, read_either


def keep(run: Path, folder: Path) -> None:
    """Copies the record of a finished run, without the run's path.

    Args:
      run: the run's folder, or its record's.
      folder: the record's folder; it is created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = read_either(run / "config.json", CONFIG)
    options = {name: value for name, value in contents["config"].items() if name != "run"}
    records.write(folder / "config.json", CONFIG, {**contents, "config": options})
    write_text(folder / "metrics.jsonl", (run / "metrics.jsonl").read_text())
    # Written last: it marks the others as complete.
    records.write(folder / "result.json", RESULT, read_either(run / "result.json", RESULT))


def find_kept(
    config: TrainConfig | DistillConfig,
    folder: Path,
    teacher_digest: str | None,
    method: Method | None = None,
) -> Result | None:
    """A run's result, from its kept record.

    Args:
      config: the run's options.
      folder: the record's folder.
      teacher_digest: the teacher's digest; None without a teacher.
      method: the run's method, if it is an object.

    Returns:
      The result; None if no finished run is recorded there.

    Raises:
      ValueError: the record is of a run with other options or another teacher.
    """
    try:
        contents = read_either(folder / "config.json", CONFIG)
        done = read_either(folder / "result.json", RESULT)
    except (FileNotFoundError, DamagedError):
        return None
    try:
        stored, identity = type(config)(**contents["config"]).decisive(), contents["identity"]
    except (KeyError, TypeError):
        raise ValueError(f"{folder} records a run of another command or version; remove it") from None
    wanted = config.decisive()
    if isinstance(config, DistillConfig):
        # Compare the resolved options: a default may have changed, or may have been passed explicitly.
        made = method or methods.create(config.method, **config.method_options)
        now = {name: as_json(value) for name, value in methods.options(made).items()}
        usual = {} if method else methods.options(methods.create(config.method))
        stored["method_options"] = {
            name.removeprefix("method."): value
            for name, value in identity.items()
            if name.startswith("method.")
        }
        # An option that the record does not know is a newer one: it must have its default.
        newer = usual.keys() - stored["method_options"].keys()
        changed = {name: now[name] for name in newer if now[name] != as_json(usual[name])}
        wanted["method_options"] = {name: now.get(name) for name in stored["method_options"]} | changed
    different = differing_keys(
        {**stored, "teacher_digest": identity.get("teacher_digest")},
        {**wanted, "teacher_digest": teacher_digest},
    )
    if different:
        raise ValueError(
            f"{folder} records another run; {describe_differences(different)}. Name another folder for the "
            "records, or remove that one"
        )
    return Result(done)
