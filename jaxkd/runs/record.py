"""What a run leaves behind: config.json, metrics.jsonl, TensorBoard events, result.json."""

from __future__ import annotations

import contextlib
import fcntl
import html
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from jaxkd import __version__
from jaxkd.differences import describe_differences, differing_keys
from jaxkd.runs.events import Events
from jaxkd.runs.watching import Log
from jaxkd.storage import DamagedError, read_json, remove_unfinished, write_json, write_text

logger = logging.getLogger("jaxkd")


class Result(dict[str, Any]):
    """What a run ended with: the contents of result.json, shown in a line."""

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
    """The files of one run, safe to open again after a crash."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder of a run; nothing is written yet."""
        self.folder = folder
        self._metrics = folder / "metrics.jsonl"
        self._lines: list[dict[str, Any]] = []
        self._logs: list[Log] = []
        self._lock_file: IO[str] | None = None
        self._events: Events | None = None

    def result(self) -> dict[str, Any] | None:
        """What the run ended with; None if it has not ended.

        A damaged one is set aside: the last checkpoint gives it again.
        """
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        try:
            return read_json(path)
        except DamagedError as error:
            logger.warning("%s; it is set aside and made again", error)
            path.rename(path.with_name(f"damaged-{time.time_ns()}-{path.name}"))
            return None

    def identity(self) -> dict[str, Any] | None:
        """What decides on the result of the run that is there; None if there is none."""
        return _stored_identity(self.folder)

    def open(
        self,
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        devices: list[jax.Device],
        *,
        objects: Sequence[str] = (),
        sources: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Writes config.json, or compares with the one that is there.

        Args:
          config: the options.
          identity: what decides on the result.
          devices: of the run.
          objects: the arguments that were given as objects.
          sources: hashes of the code of own objects, by argument.

        Returns:
          The own objects whose code is another than when the run began.

        Raises:
          ValueError: the folder is of a run with another configuration, teacher or data.
        """
        self._lock()
        path = self.folder / "config.json"
        if path.is_file():
            stored = _stored_identity(self.folder)
            if stored is None:
                raise ValueError(f"{path} is not a run's; choose another folder with --run")
            if different := differing_keys(stored, identity):
                raise ValueError(
                    f"{self.folder} holds another run; {describe_differences(different)}. "
                    "Choose another folder with --run, or repeat the first command to go on with it"
                )
            before = read_json(path).get("sources", {})
            return sorted(name for name, digest in (sources or {}).items() if before.get(name) != digest)
        if (self.folder / "checkpoints").is_dir() and any((self.folder / "checkpoints").iterdir()):
            raise ValueError(
                f"{self.folder} holds checkpoints, but no config.json that says of what; "
                "choose another folder with --run"
            )
        packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        environment = {
            "jaxkd": __version__,
            **{package: importlib.metadata.version(package) for package in packages},
            "python": platform.python_version(),
            "device": devices[0].device_kind,
            "num_devices": len(devices),
        }
        contents: dict[str, Any] = {
            "config": dict(config),
            "identity": dict(identity),
            "environment": environment,
        }
        if objects:
            contents |= {"objects": list(objects), "sources": dict(sources or {})}
        write_json(path, contents)
        return []

    def _lock(self) -> None:
        """Keeps other processes out of the folder for as long as this one lives.

        Raises:
          ValueError: another process is working on this run.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.folder / ".lock").open("w")
        except OSError as error:
            raise OSError(
                f"nothing can be written in {self.folder} ({error.strerror}); give it free space and the "
                "right to write there, or choose another folder with --run"
            ) from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another process is working on {self.folder}; wait for it, or choose another folder "
                "with --run"
            ) from None
        remove_unfinished(self.folder)

    def rewind(self, step: int) -> None:
        """Forgets what was written after `step`: a resumed run will write it again."""
        self._lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._events = Events(self.folder / "tensorboard", step + 1 if step else 0)

    def write(self, kind: str, step: int, epoch: int, **values: float) -> None:
        """Adds a line, of kind "train" or "test", to metrics.jsonl and to the events."""
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._lines.append(line)
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        assert self._events is not None, "rewind opens the record"
        tagged = {f"{kind}/{name}": value for name, value in values.items()}
        self._events.write(step, tagged)
        for log in self._logs:
            log(tagged, step)

    def also(self, log: Log) -> None:
        """Adds a place that gets what `write` gets."""
        self._logs.append(log)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind so far."""
        return [line for line in self._lines if line["kind"] == kind]

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json: the run is done."""
        write_json(self.folder / "result.json", dict(result))

    def close(self) -> None:
        """Lets other processes into the folder."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # of a full disk, which was said when it refused a line
                self._events.close()
        if self._lock_file is not None:
            self._lock_file.close()


def _stored_identity(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    return read_json(path).get("identity") if path.is_file() else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a line that was cut off or damaged is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys():
                lines.append(line)
    return lines
