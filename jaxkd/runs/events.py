"""TensorBoard events, written synchronously, so that a failing disk raises an error.

tensorboardX's own SummaryWriter passes events to a thread; if a full disk ends that thread, the next events
wait for it forever, and so does the run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class Events:
    """The events of one process, in its own file."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Opens a new file; hides earlier processes' events from `first_step` on, if that is not 0."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if first_step:
            self._writer.write_event(Event(step=first_step, file_version="brain.Event:2"))
            self._writer.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step, by tag.

        Raises:
          OSError: the write failed.
        """
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; everything is already written."""
        self._writer.close()
