"""Ctrl-C and SIGTERM as a flag that the loop looks at between calls."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Stopped(Exception):
    """A signal ended the run early; a checkpoint was saved."""


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM only sets `signal_name`; a second one interrupts.

    Outside the main thread, where Python admits no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        print(
            f"{self.signal_name}: saving a checkpoint at the next step; once more to stop at once", flush=True
        )
