"""JSON files that decide on something: the fields have types, and a checksum vouches for the contents.

All such files are read and written here.  Where the checksum is, the schema says: in a field of the file, or,
for files that people also copy and edit, beside it in FILE.sha256, as `sha256sum --check` takes it.  That one
is written first, so an existing file always has its checksum, even after a kill.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxkd.files import limits
from jaxkd.files.whole import DamagedError, first_line, write_bytes, write_text


class Field(NamedTuple):
    """What a field of a record may be.

    Attributes:
      wanted: that, in words.
      fits: whether a value is that.
      required: whether the field must be there.
    """

    wanted: str
    fits: Callable[[Any], bool]
    required: bool = True

    def optional(self) -> Field:
        """The same field, which may be absent."""
        return self._replace(required=False)


@dataclasses.dataclass(frozen=True)
class Schema:
    """The fields of a record; others are refused.

    Attributes:
      what: a description of the record.
      fields: by name.
      checksum: the field that holds the checksum; None if it is in a file beside this one.
    """

    what: str
    fields: Mapping[str, Field]
    checksum: str | None = None


TEXT = Field("a text", lambda value: isinstance(value, str))
OBJECT = Field("an object", lambda value: isinstance(value, dict))
TEXTS = Field("a list of texts", lambda value: isinstance(value, list) and all(map(TEXT.fits, value)))
TEXTS_BY_NAME = Field(
    "an object of texts", lambda value: isinstance(value, dict) and all(map(TEXT.fits, value.values()))
)


def whole_number(least: int, most: int) -> Field:
    """A field for whole numbers within bounds, which are included."""
    return Field(
        f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def number(least: float = -math.inf, most: float = math.inf, *, null: bool = False) -> Field:
    """A field for finite numbers within inclusive bounds; or null, if `null` is set."""
    bounds = f" from {least:g} to {most:g}" if math.isfinite(most) else ""

    def fits(value: Any) -> bool:
        if value is None:
            return null
        return is_number(value) and least <= value <= most

    return Field(f"a number{bounds}{', or null' if null else ''}", fits)


def write(path: Path, schema: Schema, contents: Mapping[str, Any]) -> None:
    """Writes a record, whole or not at all.

    Raises:
      ValueError: a field is of another type than it should be.
      OSError: it cannot be written.
    """
    try:
        plain = check(json.loads(json.dumps(dict(contents))), schema)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}") from None
    if schema.checksum is not None:
        write_bytes(path, _encoded({**plain, schema.checksum: checksum(plain)}))
        return
    encoded = _encoded(plain)
    write_text(_beside(path), _checksum_line(path, encoded))
    write_bytes(path, encoded)


def read(path: Path, schema: Schema) -> dict[str, Any]:
    """Reads a record.

    Raises:
      OSError: the file is not there, or cannot be read.
      DamagedError: it is not what was written; the message names the file, and the field if it is known.
    """
    raw = _bytes(path)
    contents = _object(path, raw)
    if schema.checksum is None:
        _compare_beside(path, raw)
    elif contents.pop(schema.checksum, None) != (digest := checksum(contents)):
        raise DamagedError(f"{path} is damaged: checksum mismatch")
    try:
        check(contents, schema)
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    # Values alone would let pass what makes no difference, such as 1E-3 for 1e-3.
    if schema.checksum is not None:
        written = _encoded({**contents, schema.checksum: digest})
        if raw.replace(b"\r\n", b"\n") != written:
            raise DamagedError(f"{path} is damaged: it is not written as jaxkd writes it")
    return contents


def has_checksum(path: Path) -> bool:
    """Whether a file has a checksum file: then jaxkd wrote it, and it was not copied."""
    return _beside(path).is_file()


def set_aside(path: Path) -> Path:
    """Renames a damaged file, which is kept for inspection, and returns its new path."""
    aside = path.rename(path.with_name(f"damaged-{time.time_ns()}-{path.name}"))
    _beside(path).unlink(missing_ok=True)
    return aside


def parse(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without checking its checksum or its fields.

    Raises:
      OSError: it cannot be read.
      DamagedError: it is not the JSON of an object.
    """
    return _object(path, _bytes(path))


def _bytes(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{path} is damaged: it is no file")
    if status.st_size > limits.RECORD_BYTES:
        raise DamagedError(f"{path} has {status.st_size:,} bytes; at most {limits.RECORD_BYTES:,} are read")
    return path.read_bytes()


def _object(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        contents = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is not JSON ({first_line(error)})") from None
    if not isinstance(contents, dict):
        raise DamagedError(f"{path} is damaged: it holds no object but {_kind(contents)}")
    return contents


def check(contents: Any, schema: Schema) -> dict[str, Any]:
    """The contents, if they have the fields of a schema.

    Raises:
      ValueError: a field is missing, unknown or of another type; it is named.
    """
    if not isinstance(contents, dict):
        raise ValueError(f"{schema.what} must be an object, got {_kind(contents)}")
    if unknown := sorted(contents.keys() - schema.fields.keys()):
        raise ValueError(f"unknown field {unknown[0]!r:.100}; known are {', '.join(schema.fields)}")
    for name, field in schema.fields.items():
        if name not in contents:
            if field.required:
                raise ValueError(f"the field {name!r} is missing")
        elif not field.fits(contents[name]):
            raise ValueError(f"{name} must be {field.wanted}, got {contents[name]!r:.100}")
    return contents


def checksum(contents: Mapping[str, Any]) -> str:
    """SHA-256 of contents as JSON would give them back, the order of the fields left out."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _compare_beside(path: Path, raw: bytes) -> None:
    try:
        said = _beside(path).read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} has no checksum beside it ({_beside(path).name})") from None
    if said != _checksum_line(path, raw).encode():
        raise DamagedError(f"{path} is damaged: checksum mismatch with {_beside(path).name}")


def _checksum_line(path: Path, contents: bytes) -> str:
    return f"{hashlib.sha256(contents).hexdigest()}  {path.name}\n"


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _encoded(contents: Mapping[str, Any]) -> bytes:
    return (json.dumps(contents, indent=2) + "\n").encode()


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
