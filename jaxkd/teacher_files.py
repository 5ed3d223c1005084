"""The description file of a teacher's folder, `teacher.json`: its fields, their types, its checksum.

Format 2 carries a checksum of the description beside the digest of the variables; format 1 did not, and is
still read, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxkd.files.whole import DamagedError, read_json, write_json

DESCRIPTION, VARIABLES = "teacher.json", "variables"
FORMAT = 2

_CHECKSUM = "description_sha256"
_MAX_CLASSES, _MAX_SIDE = 10_000_000, 65_536
_MAX_OPTIONS, _MAX_OPTION = 8, 2048  # of a network: a file must not ask for one of a billion layers


def write(folder: Path, fields: Mapping[str, Any], digest: str) -> None:
    """Writes the description of a teacher whose variables have a digest.

    Raises:
      ValueError: a field is of another type than it should be.
    """
    fields = checked(json.loads(json.dumps(fields)))
    about = {"format": FORMAT, **fields, "digest": digest}
    write_json(folder / DESCRIPTION, {**about, _CHECKSUM: checksum(about)})


def read(folder: Path) -> tuple[dict[str, Any], str]:
    """Reads a description.

    Returns:
      Its fields, of the right types, and the digest of the variables.

    Raises:
      DamagedError: it is not what was written.
      ValueError: it is of a format that is not known here.
    """
    file, again = folder / DESCRIPTION, "remove that folder and save the teacher again"
    try:
        about = read_json(file)
    except DamagedError as error:
        raise DamagedError(f"{error}; {again}") from None
    if not isinstance(about, dict) or "format" not in about:
        raise DamagedError(f"{file} is not JSON of a teacher; {again}")
    if about["format"] not in (1, FORMAT) or isinstance(about["format"], bool):
        raise ValueError(f"{file} is not of format 1 or {FORMAT}, but {about['format']!r:.40}; {again}")
    if about["format"] == 1:
        logging.getLogger("jaxkd").warning(
            "%s is of format 1, which has no checksum of the description; save the teacher again to add one",
            file,
        )
    elif about.pop(_CHECKSUM, None) != checksum(about):
        raise DamagedError(f"{file} is damaged: checksum mismatch; {again}")
    del about["format"]
    digest = about.pop("digest", None)
    if not isinstance(digest, str):
        raise DamagedError(f"{file} is damaged: it has no digest of the variables; {again}")
    try:
        return checked(about), digest
    except ValueError as error:
        raise DamagedError(f"{file} is damaged: {error}; {again}") from None


def checksum(about: Mapping[str, Any]) -> str:
    """SHA-256 of a description as JSON would give it back."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def checked(fields: Any) -> dict[str, Any]:
    """The fields of a description that went through JSON, lists as tuples.

    Raises:
      ValueError: one is missing, unknown or of another type; it is named.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"a description must be an object, got {type(fields).__name__}")
    if unknown := sorted(fields.keys() - _FIELDS.keys()):
        raise ValueError(f"unknown field {unknown[0]!r:.100}; known are {', '.join(_FIELDS)}")
    if missing := [name for name in _REQUIRED if name not in fields]:
        raise ValueError(f"the field {missing[0]!r} is missing")
    for name, value in fields.items():
        wanted, fits = _FIELDS[name]
        if not fits(value):
            raise ValueError(f"{name} must be {wanted}, got {value!r:.100}")
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
        about = read_json(folder / DESCRIPTION)
    except (OSError, DamagedError):  # torn, beside variables that nothing else writes
        return saved
    return isinstance(about, dict) and {"format", "digest"} <= about.keys()


# Orbax writes one of these into every folder of a tree.
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA")


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_channels(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_number, value))


def _is_option(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= _MAX_OPTIONS and all(
            _is_number(part) and abs(part) <= _MAX_OPTION for part in value
        )
    return (
        value is None or isinstance(value, (bool, str)) or (_is_number(value) and abs(value) <= _MAX_OPTION)
    )


_TEXT = "a text", lambda value: isinstance(value, str)
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": _TEXT,
    "num_classes": (f"a whole number from 1 to {_MAX_CLASSES}", lambda value: _is_whole(value, _MAX_CLASSES)),
    "image_shape": (
        f"three whole numbers from 1 to {_MAX_SIDE}",
        lambda value: (
            isinstance(value, (list, tuple))
            and len(value) == 3
            and all(_is_whole(n, _MAX_SIDE) for n in value)
        ),
    ),
    "mean": ("finite numbers", _are_channels),
    "std": ("finite numbers", _are_channels),
    "data": _TEXT,
    "test_accuracy": (
        "a number from 0 to 100, or null",
        lambda value: value is None or (_is_number(value) and 0 <= value <= 100),
    ),
    "source": _TEXT,
    "model_options": (
        f"an object of at most {_MAX_OPTIONS} texts, numbers up to {_MAX_OPTION} and short lists of them",
        lambda value: (
            isinstance(value, dict) and len(value) <= _MAX_OPTIONS and all(map(_is_option, value.values()))
        ),
    ),
}
_FIELDS["own"] = "true or false", lambda value: isinstance(value, bool)
_REQUIRED = ("model", "num_classes", "image_shape", "mean", "std", "data")
