"""The runs of several seeds side by side: each in a thread, on devices of its own.

JAX lets go of Python's lock while it compiles and computes.  Nothing is exchanged between the runs, so each
is what it would be alone on its devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from jaxkd.config import RunConfig
from jaxkd.signals import Stopped, StopRequest
from jaxkd.training.loop import Say
from jaxkd.training.parallel import choose_devices

C = TypeVar("C", bound=RunConfig)
T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.2
_THREAD = "jaxkd run"


def choose_places(config: RunConfig) -> list[list[jax.Device]]:
    """The devices of each of the runs that go on at the same time; all devices, as one place, for one run.

    Several places are of one size, the largest at which there are devices enough and each can share a batch
    equally.

    Raises:
      ValueError: there are not so many devices as are asked for, or several processes.
    """
    devices = choose_devices(config.devices)
    at_once = config.seeds_at_once
    if jax.process_count() > 1 and (at_once or 1) > 1:
        raise ValueError(
            f"--seeds-at-once {at_once} is for one process, and this is one of {jax.process_count()}; "
            "leave it out, and the runs follow one another"
        )
    if at_once is None:
        alone = config.one_at_a_time or jax.process_count() > 1
        at_once = 1 if alone else min(config.seeds, len(devices))
    if at_once > len(devices):
        raise ValueError(
            f"--seeds-at-once must be from 1 to {len(devices)}, the number of devices, since every run needs "
            f"one of its own, got {at_once}; with a smaller number, runs wait for others to end"
        )
    if at_once == 1:
        return [devices]
    sizes = range(len(devices) // at_once, 0, -1)
    size = next((n for n in sizes if config.batch_size % (n * config.accumulate) == 0), 1)
    return [devices[start : start + size] for start in range(0, at_once * size, size)]


def side_by_side(
    run: Callable[[C, list[jax.Device], Say, StopRequest], T],
    configs: Sequence[C],
    places: Sequence[list[jax.Device]],
    say: Say,
) -> list[T]:
    """Makes several runs, one in each place at a time.

    Args:
      run: `(config, devices, say, stop) -> result`; called in a thread.
      configs: of the runs, in the order in which they begin; each is told the number of its devices.
      places: the devices of the runs that go on at the same time.
      say: where progress goes; each line begins with the seed of its run.

    Returns:
      What each run returned, in the order of `configs`.

    Raises:
      Stopped: a signal came; the runs that had begun have saved what there was, and the others do not begin.
      Exception: what a run raised (the first in order, if several did), after the others have ended, those
        that waited too.
    """
    kind = f"{len(places[0])} x {places[0][0].device_kind}"
    say(f"{len(configs)} runs, {len(places)} at a time, each on {kind}")
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}
    waiting: queue.SimpleQueue[C] = queue.SimpleQueue()
    for config in configs:
        waiting.put(config)
    lock = threading.Lock()

    def work(devices: list[jax.Device], stop: StopRequest) -> None:
        with jax.default_device(devices[0]), contextlib.suppress(queue.Empty):
            while not stop.signal_name:
                config = waiting.get_nowait()
                own = _prefixed(f"seed {config.seed}: ", say, lock)
                try:
                    alone = dataclasses.replace(config, devices=len(devices))
                    results[config.seed] = run(alone, devices, own, stop)
                except BaseException as error:
                    failures[config.seed] = error
                    _forget_arrays(error)
                    with contextlib.suppress(Exception):  # a closed pipe, say, which may be what failed
                        own(str(error) if isinstance(error, Stopped) else f"failed: {error}")

    with StopRequest() as stop:
        threads = [
            threading.Thread(target=work, args=(devices, stop), name=f"{_THREAD} {place}", daemon=True)
            for place, devices in enumerate(places)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_SECONDS_BETWEEN_LOOKS)  # a signal is seen in between
    failed = [seed for seed, error in sorted(failures.items()) if not isinstance(error, Stopped)]
    if failed:
        say(f"{len(failed)} of {len(configs)} runs failed, of seed {', '.join(map(str, failed))}")
    if stop.signal_name:
        raise Stopped(
            f"stopped by {stop.signal_name}: {len(results)} of {len(configs)} runs are done, and the same "
            "command goes on from there"
        )
    if failed:
        raise failures[failed[0]]
    return [results[config.seed] for config in configs]


def is_at_work() -> bool:
    """Whether runs are going on in threads, as they are for a while after a second signal has interrupted."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


def _forget_arrays(error: BaseException | None) -> None:
    """Lets go of what the frames of a failure hold, lest it stay on the devices while other runs go on."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _prefixed(prefix: str, say: Say, lock: threading.Lock) -> Say:
    """Says every line with a prefix, and whole."""

    def prefixed(text: str) -> None:
        with lock:
            say("\n".join(prefix + line for line in text.splitlines()))

    return prefixed
