"""Ctrl-C and SIGTERM: an exception where nothing can be lost, a flag to look at where something can.

Needs nothing outside the standard library, so that the handler is there before anything slow is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


class Stopped(Exception):
    """A signal ended the run early; its progress is saved, and the same command resumes."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM came where nothing had to be saved; no `Exception`, which would count as a failure."""


# Python swallows what a handler raises in a destructor or in JAX's callback of the garbage collector; a run
# that begins all the same finds the signal here.
_raised: list[str] = []


@contextlib.contextmanager
def exit_when_stopped() -> Iterator[None]:
    """Around a whole command: SIGTERM interrupts as Ctrl-C does, and both end it as `report` says."""

    def interrupt(number: int, _: FrameType | None) -> None:
        _raised.append(signal.Signals(number).name)
        raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (Stopped, KeyboardInterrupt) as stopped:
        sys.exit(report(stopped))
    finally:
        _raised.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def report(stopped: Stopped | KeyboardInterrupt) -> int:
    """Prints what ended a command, and returns its exit code.

    75 after SIGTERM at any time, and after Ctrl-C in a run's loop: the same command resumes.
    130 after Ctrl-C elsewhere, and after a second signal, which does not wait.
    """
    if isinstance(stopped, Stopped):
        print(stopped, flush=True)
        return EXIT_STOPPED
    if isinstance(stopped, _Terminated):
        print("stopped by SIGTERM; there was nothing to save, and the same command starts again", flush=True)
        return EXIT_STOPPED
    print("stopped at once; earlier checkpoints are intact", flush=True)
    return EXIT_INTERRUPTED


class StopRequest:
    """Inside its context, the first SIGINT or SIGTERM only sets `signal_name`; a second one interrupts.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._received = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
            # Or a signal that the outer handlers have just received.
            self.signal_name = self.signal_name or (_raised[0] if _raised else None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        # Another process's signal may have set the name already: this process received none.
        self._received = True
        self.signal_name = self.signal_name or signal.Signals(number).name
        # Not print: the signal may interrupt a print, which is not reentrant.
        with contextlib.suppress(OSError):
            os.write(1, f"{self.signal_name}: saving a checkpoint; repeat it to stop at once\n".encode())
