"""What a run leaves behind: config.json, metrics.jsonl, TensorBoard events, result.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import tensorboardX

from jaxkd import __version__
from jaxkd.storage import write_json
from jaxkd.training.checkpoint import describe_differences, differing_keys


class Record:
    """The files of one run, safe to open again after a crash."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder of a run; nothing is written yet."""
        self.folder = folder
        self._metrics = folder / "metrics.jsonl"
        self._lines: list[dict[str, Any]] = []
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
        path = self.folder / "config.json"
        identity = json.loads(json.dumps(dict(identity)))
        if path.is_file():
            if different := differing_keys(json.loads(path.read_text())["identity"], identity):
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
        environment = {
            "jaxkd": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "device": devices[0].device_kind,
            "num_devices": len(devices),
        }
        write_json(path, {"config": dict(config), "identity": identity, "environment": environment})

    def rewind(self, step: int) -> None:
        """Forgets what was written after `step`: a resumed run will write it again."""
        self._lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._metrics.parent.mkdir(parents=True, exist_ok=True)
        self._metrics.write_text(text)
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
        """Flushes the events."""
        if self._events is not None:
            self._events.close()


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
