"""What a run leaves behind: config.json, metrics.jsonl, TensorBoard events, result.json."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
import tensorboardX

from jaxkd import __version__
from jaxkd.storage import write_json, write_text
from jaxkd.training.checkpoint import describe_differences, differing_keys


class Record:
    """The files of one run, safe to open again after a crash."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder of a run; nothing is written yet."""
        self.folder = folder
        self._metrics = folder / "metrics.jsonl"
        self._lines: list[dict[str, Any]] = []
        self._lock_file: IO[str] | None = None
        self._events: tensorboardX.SummaryWriter | None = None

    def result(self) -> dict[str, Any] | None:
        """What the run ended with; None if it has not ended."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def open(self, config: Mapping[str, Any], identity: Mapping[str, Any], devices: list[jax.Device]) -> None:
        """Writes config.json, or compares with the one that is there.

        Raises:
          ValueError: the folder is of a run with another configuration, teacher or data.
        """
        self._lock()
        path = self.folder / "config.json"
        if path.is_file():
            stored = json.loads(path.read_text()).get("identity")
            if stored is None:
                raise ValueError(f"{path} is not a run's; choose another folder with --run")
            if different := differing_keys(stored, identity):
                raise ValueError(
                    f"{self.folder} holds another run; {describe_differences(different)}. "
                    "Choose another folder with --run, or repeat the first command to go on with it"
                )
            return
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
        write_json(path, {"config": dict(config), "identity": dict(identity), "environment": environment})

    def _lock(self) -> None:
        """Keeps other processes out of the folder for as long as this one lives.

        Raises:
          ValueError: another process is working on this run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another process is working on {self.folder}; wait for it, or choose another folder "
                "with --run"
            ) from None

    def rewind(self, step: int) -> None:
        """Forgets what was written after `step`: a resumed run will write it again."""
        self._lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._events = tensorboardX.SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, kind: str, step: int, epoch: int, **values: float) -> None:
        """Adds a line, of kind "train" or "test", to metrics.jsonl and to the events."""
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._lines.append(line)
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        assert self._events is not None, "rewind opens the record"
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind so far."""
        return [line for line in self._lines if line["kind"] == kind]

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json: the run is done."""
        write_json(self.folder / "result.json", dict(result))

    def close(self) -> None:
        """Flushes the events, and lets other processes into the folder."""
        if self._events is not None:
            self._events.close()
        if self._lock_file is not None:
            self._lock_file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that was cut off is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
