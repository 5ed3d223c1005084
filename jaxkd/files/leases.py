"""Leases: what keeps a second process out of a folder in a bucket, where there are no locks.

A lease is an object that names its holder, who writes it again at short intervals: the heartbeat.  The store
makes it for one process alone (a write that is bound to the object's generation), and so is each heartbeat:
who has lost a lease cannot write it again, and learns so.  Nobody's clock is compared with another's: who
meets a lease watches it, and takes it over when it was not written for `SECONDS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxkd.files.places import BucketPath, Held, asking_for

SECONDS = 30.0  # without a heartbeat, until a lease counts as left behind
_BEAT_SECONDS = 8.0
_WATCH_SECONDS = 0.5


class BusyError(ValueError):
    """Another process works there."""


class Lease:
    """A lease that this process holds until it is closed.

    Args:
      path: of the object.
      what: what it is on, for messages.
      say: told when a lease is watched that may have been left behind.
      patience: seconds to wait for another holder that lives; 0 to be refused at once.

    Raises:
      BusyError: another process holds it.
    """

    def __init__(
        self, path: BucketPath, what: str, *, say: Callable[[str], None] | None = None, patience: float = 0.0
    ) -> None:
        self._path, self._what = path, what
        holder = {"host": platform.node(), "process": os.getpid()}
        self._name = secrets.token_hex(8)
        self._contents = json.dumps({"holder": self._name, **holder}).encode()
        self._lost = False
        self._lock = threading.Lock()
        self._generation = self._acquire(say or (lambda _: None), time.monotonic() + patience)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="jaxkd-lease", daemon=True)
        self._thread.start()

    def _acquire(self, say: Callable[[str], None], deadline: float) -> int:
        first: Held | None = None
        watched = 0.0
        while True:
            try:
                return self._path.put(self._contents, generation=0)
            except FileExistsError:
                held = self._path.held()
            if held is None:
                continue
            if self._is_own():
                return held.generation
            if first is None or (first.generation != held.generation and time.monotonic() < deadline):
                if first is None:
                    say(
                        f"{self._what} is in use by {self._describe()}, or was left by it; watching its "
                        f"lease for up to {SECONDS:.0f} seconds"
                    )
                first, watched = held, time.monotonic()
            elif first.generation != held.generation:
                raise BusyError(f"another process is working on {self._what}: {self._describe()}")
            if time.monotonic() - watched > SECONDS:
                with contextlib.suppress(FileExistsError):
                    return self._path.put(self._contents, generation=held.generation)
                if self._is_own():
                    continue
            time.sleep(_WATCH_SECONDS)

    def _holder(self) -> dict[str, Any]:
        """What the lease says; nothing if it is gone or no lease."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            said = json.loads(self._path.read_bytes())
            return said if isinstance(said, dict) else {}
        return {}

    def _is_own(self) -> bool:
        return self._holder().get("holder") == self._name

    def _describe(self) -> str:
        said = self._holder()
        return f"process {said.get('process', '?')} on {said.get('host', 'a machine that it does not name')}"

    def require(self) -> None:
        """A heartbeat, now.

        Raises:
          OSError: another process has taken the lease over, or the store fails.
        """
        with self._lock:
            if not self._lost:
                try:
                    self._generation = self._path.put(self._contents, generation=self._generation)
                except FileExistsError:
                    held = self._path.held() if self._is_own() else None
                    self._lost = held is None
                    self._generation = held.generation if held else 0
            if self._lost:
                raise OSError(
                    f"{self._what} was taken over by {self._describe()}: this process had not been heard of "
                    f"for {SECONDS:.0f} seconds, and writes nothing more there"
                )

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS):
            # Not for long: the next write asks again, and gets the error.
            with contextlib.suppress(OSError), asking_for(_BEAT_SECONDS):
                self.require()

    def close(self) -> None:
        """Lets others in."""
        self._closed.set()
        with self._lock, contextlib.suppress(OSError):
            if not self._lost:
                try:
                    self._path.unlink(generation=self._generation)
                except FileExistsError:  # perhaps from a heartbeat with a lost answer
                    held = self._path.held()
                    if held is not None and self._is_own():
                        self._path.unlink(generation=held.generation)
        self._lost = True
