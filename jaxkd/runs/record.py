"""The files of a run: config.json, metrics.jsonl, TensorBoard events, result.json.

The first and the last affect later runs, and have checksum files; in metrics.jsonl, each line on the test
split has its own checksum, since these lines become the result.
"""

from __future__ import annotations

import contextlib
import html
import importlib.metadata
import json
import logging
import platform
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax

from jaxkd import __version__
from jaxkd.differences import describe_differences, differing_keys
from jaxkd.files import records
from jaxkd.files.leases import Lease
from jaxkd.files.places import BucketPath, asking_for
from jaxkd.files.records import OBJECT, TEXT, TEXTS, TEXTS_BY_NAME, Field, whole_number
from jaxkd.files.whole import Local, lock
from jaxkd.runs.checkpoint import recorded_config
from jaxkd.runs.events import Events
from jaxkd.runs.watching import Log
from jaxkd.storage import DamagedError, remove_unfinished, write_text

logger = logging.getLogger("jaxkd")

CONFIG = records.Schema(
    "config.json",
    {
        "config": OBJECT,
        "identity": OBJECT,
        "environment": OBJECT,
        "resumed": TEXTS.optional(),  # changes of versions and devices since the start
        "objects": TEXTS.optional(),
        "sources": TEXTS_BY_NAME.optional(),
    },
)
_MANY = 2**53
_ACCURACY = records.number(0, 100)
RESULT = records.Schema(
    "result.json",
    {
        "model": TEXT,
        "parameters": whole_number(0, _MANY),
        "data": TEXT,
        "test_examples": whole_number(1, _MANY),
        "epochs": whole_number(1, _MANY),
        "seed": whole_number(0, 2**32 - 1),
        "last_accuracy": _ACCURACY,
        "best_accuracy": _ACCURACY,
        "best_epoch": whole_number(1, _MANY),
        "last_ce": Field("a number", lambda value: type(value) in (int, float)),
        "method": TEXT,
        "teacher": TEXT.optional(),
        "teacher_model": TEXT.optional(),
        "teacher_accuracy": records.number(0, 100, null=True).optional(),
        "losses": OBJECT,
        "metrics": OBJECT,
        "images_per_second": records.number(0, null=True),
        "seconds": OBJECT,
    },
)
# The names of a run's files and folders, besides config.json.
_PARTS = ("checkpoints", "model", "result.json", "metrics.jsonl")
_CLOSING_SECONDS = 5.0  # timeout for a failing store when nothing else depends on it
# Rounding may depend on these.
_VERSIONS = ("jaxkd", "jax", "jaxlib", "flax", "optax", "numpy", "device", "num_devices")


class Recorded(NamedTuple):
    """What is known about the run in a folder.

    Attributes:
      config: the contents of its config.json; None if there is no run, or they are lost.
      trouble: the problem with config.json; None if it is intact, or if there is nothing.
      step: the step of the checkpoint that config.json was recovered from; None if that was not needed.
    """

    config: dict[str, Any] | None
    trouble: str | None = None
    step: int | None = None


def recorded(folder: Path) -> Recorded:
    """Reads a run's config.json; if it is damaged or lost, reads it from the newest good checkpoint.

    Raises:
      OSError: a file cannot be read now.
    """
    path = folder / "config.json"
    try:
        return Recorded(records.read(path, CONFIG))
    except FileNotFoundError:
        trouble = f"{path} is missing"
    except NotADirectoryError as error:
        raise _unusable(folder, error) from error
    except DamagedError as error:
        trouble = str(error)
    found = recorded_config(folder / "checkpoints")
    if found is not None:
        return Recorded(found[0], trouble, found[1])
    return Recorded(None, trouble if path.exists() else None)


def read_either(path: Path, schema: records.Schema) -> dict[str, Any]:
    """Reads a record for a report: records of earlier versions have no checksum.

    Raises:
      OSError: it does not exist, or cannot be read.
      DamagedError: its checksum does not match.
    """
    return records.read(path, schema) if records.has_checksum(path) else records.parse(path)


class Result(dict[str, Any]):
    """A run's result: the contents of result.json, with a one-line repr."""

    def __repr__(self) -> str:
        rows = "; ".join(f"{name} {value}" for name, value in self._rows())
        return f"<Result: {rows}>"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table>{cells}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        if "runs" in self:
            spread = f"{self['last_accuracy']:.2f} ± {self['last_accuracy_deviation']:.2f} %"
            return [("accuracy", spread), ("seeds", ", ".join(map(str, self["seeds"])))]
        rows = [(name, str(self[name])) for name in ("model", "method", "data", "epochs", "seed")]
        best = f"{self['best_accuracy']:.2f} % in epoch {self['best_epoch']}"
        return [("accuracy", f"{self['last_accuracy']:.2f} %"), ("best", best), *rows]


class Record:
    """The files of one run, safe to reopen after a crash.

    Attributes:
      folder: their folder.
      config: the contents of config.json, once the record is open; only in the first process.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the folder of a run; nothing is written yet."""
        self.folder = folder
        self._local: Local | None = None
        self._lines: list[dict[str, Any]] = []
        self._logs: list[Log] = []
        self._lock_file: IO[str] | None = None
        self._lease: Lease | None = None
        self._events: Events | None = None
        self._warned = False
        self.config: dict[str, Any] = {}

    def result(self) -> dict[str, Any] | None:
        """The run's result; None if it has not ended.

        A damaged result counts as none: it is rebuilt from the last checkpoint.
        """
        try:
            return records.read(self.folder / "result.json", RESULT)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            if not self._warned:
                logger.warning("%s; it is set aside and rebuilt", error)
            self._warned = True
            return None

    def identity(self) -> dict[str, Any] | None:
        """The identity of the existing run; None if there is none."""
        known = recorded(self.folder).config
        return None if known is None else known["identity"]

    def open(
        self,
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        devices: list[jax.Device],
        *,
        objects: Sequence[str] = (),
        sources: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Writes config.json, or compares with the existing one.

        Args:
          config: the options.
          identity: everything that determines the result.
          devices: the run's devices.
          objects: the arguments that were passed as objects.
          sources: hashes of the code of user objects, by argument.

        Returns:
          Notes for the user: what was recovered, and changes since the start of the run that may affect its
          numbers.

        Raises:
          ValueError: the folder holds a run with another configuration, teacher or data, or unknown files.
        """
        self._lock()
        path = self.folder / "config.json"
        known = recorded(self.folder)
        now = _environment(devices)
        if known.config is None:
            notes = self._begin(path, known.trouble)
            contents: dict[str, Any] = {"config": config, "identity": identity, "environment": now}
            if objects:
                contents |= {"objects": list(objects), "sources": dict(sources or {})}
            self.config = json.loads(json.dumps(contents))
            records.write(path, CONFIG, self.config)
            return notes
        if different := differing_keys(known.config["identity"], identity):
            raise ValueError(
                f"{self.folder} holds another run; {describe_differences(different)}. "
                "Choose another folder with --run, or repeat the original command to resume it"
            )
        self.config, notes = known.config, []
        if known.trouble is not None:
            aside = f" and kept as {records.set_aside(path).name}" if path.exists() else ""
            records.write(path, CONFIG, known.config)
            notes.append(f"{known.trouble}; it was rebuilt from checkpoint {known.step}{aside}")
        before = known.config.get("sources", {})
        notes += [
            f"the code of your {name} has changed since this run began, but its name has not: to train with "
            "the new code, give it another name, or pass another --run"
            for name, digest in sorted((sources or {}).items())
            if before.get(name, digest) != digest
        ]
        began = {name: known.config["environment"].get(name) for name in _VERSIONS}
        changed = [f"{name} {began[name]}, now {now[name]}" for name in _VERSIONS if began[name] != now[name]]
        if changed and Record.result(self) is None:  # not a subclass's, which may ask other processes
            change = "; ".join(changed)
            notes.append(
                f"this run began with {change}. It resumes, and ends with the same numbers up to "
                "rounding, which training amplifies; the same bits are guaranteed only for the same versions "
                "and devices"
            )
            resumed = self.config.get("resumed", [])
            if change not in resumed:
                self.config = {**self.config, "resumed": [*resumed, change]}
                records.write(path, CONFIG, self.config)
        return notes

    def _begin(self, path: Path, trouble: str | None) -> list[str]:
        """Checks that a new run may start here, without using another run's files."""
        there = [name for name in _PARTS if (self.folder / name).exists()]
        if trouble is None:
            if there:
                raise ValueError(
                    f"{self.folder} holds {', '.join(there)}, but no config.json that describes it; choose "
                    "another folder with --run"
                )
            return []
        if not records.has_checksum(path):
            raise ValueError(
                f"{path} was not written by a run here, and is left alone: {trouble}; choose another folder "
                f"with --run (--config {path} takes its options)"
            )
        if set(there) - {"metrics.jsonl"}:
            raise ValueError(
                f"{trouble}, and no checkpoint contains it; choose another folder with --run. "
                f"{', '.join(there)} in {self.folder} is left alone"
            )
        aside = records.set_aside(path)
        return [f"{trouble}; no step had been saved. It is kept as {aside.name}, and the run starts again"]

    def _lock(self) -> None:
        """Locks the folder for the lifetime of this process.

        Raises:
          BusyError: another process is working on this run.
        """
        if isinstance(self.folder, BucketPath):
            self._lease = Lease(self.folder / ".lock", str(self.folder), say=logger.warning)
            return remove_unfinished(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.folder / ".lock").open("w")
        except OSError as error:
            raise _unusable(self.folder, error) from error
        lock(
            self._lock_file,
            f"another process is working on {self.folder}; wait for it, or choose another folder with --run",
        )
        remove_unfinished(self.folder)

    @property
    def local(self) -> Path:
        """A folder where files can be appended to: the run's folder, or a local one that is uploaded to it.

        See `flush`.
        """
        if self._local is None:
            self._local = Local(self.folder)
        return self._local.path

    @property
    def _metrics(self) -> Path:
        return self.local / "metrics.jsonl"

    def rewind(self, step: int) -> None:
        """Discards everything written after `step`: a resumed run will write it again."""
        self._lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
        write_text(self._metrics, "".join(map(_encoded, self._lines)))
        self._events = Events(self.local / "tensorboard", step + 1 if step else 0)

    def flush(self) -> None:
        """Uploads everything written so far to a bucket; call it before a checkpoint that depends on it.

        Raises:
          OSError: the upload failed, or another process has taken over the run.
        """
        if self._lease is not None:
            self._lease.require()
        if self._local is not None:
            self._local.push()

    def write(self, kind: str, step: int, epoch: int, **values: float) -> None:
        """Adds a line, of kind "train" or "test", to metrics.jsonl and to the events."""
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._lines.append(line)
        with self._metrics.open("a") as file:
            file.write(_encoded(line))
        assert self._events is not None, "rewind opens the record"
        tagged = {f"{kind}/{name}": value for name, value in values.items()}
        self._events.write(step, tagged)
        for log in self._logs:
            log(tagged, step)
        if self._local is not None:
            self._local.push(now=False)

    def also(self, log: Log) -> None:
        """Adds another receiver of the values passed to `write`."""
        self._logs.append(log)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind so far."""
        return [line for line in self._lines if line["kind"] == kind]

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json: the run is done."""
        self.flush()
        path = self.folder / "result.json"
        if path.exists():
            records.set_aside(path)
        records.write(path, RESULT, result)

    def close(self) -> None:
        """Releases the folder for other processes."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # a full disk, already reported when a line failed
                self._events.close()
        with asking_for(_CLOSING_SECONDS):
            if self._local is not None:
                with contextlib.suppress(OSError):  # the same for a store
                    self._local.push()
                self._local.close()
            if self._lease is not None:
                self._lease.close()
        if self._lock_file is not None:
            self._lock_file.close()


def _environment(devices: list[jax.Device]) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "jaxkd": __version__,
        **{package: importlib.metadata.version(package) for package in packages},
        "python": platform.python_version(),
        "device": devices[0].device_kind,
        "num_devices": len(devices),
    }


def _unusable(folder: Path, error: OSError) -> OSError:
    return OSError(
        f"nothing can be written in {folder} ({error.strerror}); {_remedy(folder)}, or choose another folder "
        "with --run"
    )


def _remedy(folder: Path) -> str:
    """What to do if a folder cannot be written to."""
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            return f"the link {path} points to nothing: remove it, or create {path.readlink()}"
        if path.exists() and not path.is_dir():
            return f"{path} is a file: move it away"
    return "free some space, or grant write permission"


def _encoded(line: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl; lines on the test split have a checksum."""
    return json.dumps({**line, _CRC: _crc(line)} if line["kind"] == "test" else line) + "\n"


_CRC = "crc32"


def _crc(line: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(line, sort_keys=True).encode()):08x}"


def _decoded(text: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return None
    if not all(type(line.get(name)) is int for name in ("step", "epoch")):
        return None
    crc = line.pop(_CRC, None)
    return line if crc in (None, _crc(line)) else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without a truncated one and, with a warning, damaged ones."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    *texts, last = path.read_bytes().split(b"\n")
    lines = [_decoded(text) for text in texts]
    if damaged := [str(number) for number, line in enumerate(lines, 1) if line is None]:
        logger.warning("%s is damaged: skipping line %s", path, ", ".join(damaged[:10]))
    return [line for line in [*lines, _decoded(last)] if line is not None]
