"""The description file of a teacher's folder, `teacher.json`: its fields, their types, its checksum.

Format 2 contains a checksum of the description, the digest of the variables, and the digests of their files;
format 1 has no checksum of the description, and is still read, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxkd.files import records
from jaxkd.files.records import TEXT, TEXTS_BY_NAME, Field, Schema, is_number
from jaxkd.files.whole import DamagedError

DESCRIPTION, VARIABLES = "teacher.json", "variables"
FORMAT = 2

_MAX_CLASSES, _MAX_SIDE = 10_000_000, 65_536
_MAX_OPTIONS, _MAX_OPTION = 8, 2048  # of a network: a file must not ask for one of a billion layers


class Stored(NamedTuple):
    """The contents of `teacher.json`.

    Attributes:
      fields: the description's fields.
      digest: the digest of the variables.
      files: digests of the variables' files, by path; None if an earlier version did not record them.
    """

    fields: dict[str, Any]
    digest: str
    files: dict[str, str] | None


def write(folder: Path, fields: Mapping[str, Any], digest: str, files: Mapping[str, str]) -> None:
    """Writes a teacher's description, with the digests of its variables and of their files.

    Raises:
      ValueError: a field has the wrong type.
    """
    about = {"format": FORMAT, **fields, "digest": digest, "files": dict(files)}
    records.write(folder / DESCRIPTION, _STORED, about)


def read(folder: Path) -> Stored:
    """Reads a description; its fields have the right types, with lists as tuples.

    Raises:
      OSError: it does not exist, or cannot be read.
      DamagedError: it is damaged.
      ValueError: its format is unknown.
    """
    file, again = folder / DESCRIPTION, "remove that folder and save the teacher again"
    try:
        about = records.parse(file)
        if "format" not in about:
            raise DamagedError(f"{file} is damaged: its format is missing")
        if about["format"] not in (1, FORMAT) or isinstance(about["format"], bool):
            raise ValueError(f"{file} is not of format 1 or {FORMAT}, but {about['format']!r:.40}")
        if about["format"] == 1:
            logging.getLogger("jaxkd").warning(
                "%s is of format 1, which has no checksum of the description; save the teacher again to add "
                "one",
                file,
            )
            try:
                records.check(about, _STORED)
            except ValueError as error:
                raise DamagedError(f"{file} is damaged: {error}") from None
        else:
            about = records.read(file, _STORED)
    except ValueError as error:
        raise type(error)(f"{error}; {again}") from None
    del about["format"]
    digest, files = about.pop("digest"), about.pop("files", None)
    return Stored(_with_tuples(about), digest, files)


def checked(fields: Any) -> dict[str, Any]:
    """The fields of a description that went through JSON, lists as tuples.

    Raises:
      ValueError: one is missing, unknown or of another type; it is named.
    """
    return _with_tuples(records.check(fields, _DESCRIPTION))


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def is_teacher(folder: Path) -> bool:
    """Whether a folder holds a teacher of ours and nothing else; its variables are not read."""
    names = {path.name for path in folder.iterdir()}
    if names != {DESCRIPTION, VARIABLES}:
        return False
    if any(path.is_symlink() for path in folder.iterdir()) or not (folder / VARIABLES).is_dir():
        return False
    saved = any((folder / VARIABLES / name).is_file() for name in _ORBAX)
    if not saved and any((folder / VARIABLES).iterdir()):
        return False
    try:
        about = records.parse(folder / DESCRIPTION)
    except (OSError, DamagedError):  # torn, beside variables that nothing else writes
        return saved
    return {"format", "digest"} <= about.keys()


# Orbax writes one of these into every folder of a tree.
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA")


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _are_channels(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_number, value))


def _is_option(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= _MAX_OPTIONS and all(
            is_number(part) and abs(part) <= _MAX_OPTION for part in value
        )
    return value is None or isinstance(value, (bool, str)) or (is_number(value) and abs(value) <= _MAX_OPTION)


def _is_method(value: Any) -> bool:
    """Whether it names a method with its options, or is empty."""
    if not isinstance(value, dict) or (value and value.keys() != {"name", "options"}):
        return False
    return not value or (
        isinstance(value["name"], str) and isinstance(value["options"], dict) and _is_json(value["options"])
    )


def _is_json(value: Any, depth: int = 8) -> bool:
    """Whether it consists of texts, finite numbers, and lists and dictionaries of them, up to a depth."""
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and _is_json(list(value.values()), depth)
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_json(part, depth - 1) for part in value)
    return value is None or isinstance(value, (bool, str)) or is_number(value)


_CHANNELS = Field("finite numbers", _are_channels)
_DESCRIPTION = Schema(
    "a description",
    {
        "model": TEXT,
        "num_classes": records.whole_number(1, _MAX_CLASSES),
        "image_shape": Field(
            f"three whole numbers from 1 to {_MAX_SIDE}",
            lambda value: (
                isinstance(value, (list, tuple))
                and len(value) == 3
                and all(_is_whole(n, _MAX_SIDE) for n in value)
            ),
        ),
        "mean": _CHANNELS,
        "std": _CHANNELS,
        "data": TEXT,
        "test_accuracy": records.number(0, 100, null=True).optional(),
        "source": TEXT.optional(),
        "model_options": Field(
            f"an object of at most {_MAX_OPTIONS} texts, numbers up to {_MAX_OPTION} and short lists of them",
            lambda value: (
                isinstance(value, dict)
                and len(value) <= _MAX_OPTIONS
                and all(map(_is_option, value.values()))
            ),
            required=False,
        ),
        "own": Field("true or false", lambda value: isinstance(value, bool), required=False),
        "method": Field("an object with the name and the options of a method", _is_method, required=False),
    },
)
_STORED = Schema(
    "teacher.json",
    {
        "format": records.whole_number(1, FORMAT),
        **_DESCRIPTION.fields,
        "digest": TEXT,
        "files": TEXTS_BY_NAME.optional(),
    },
    checksum="description_sha256",
)
