"""Several processes as one run: joining, sharing what the first one knows, agreeing, and losing one.

Every process computes the same state from its own share of each batch.  The first one alone reads and writes
the run's folder; the others get from it what they need, so that they need no common disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import flax.serialization
import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxkd.differences import describe_differences, differing_keys
from jaxkd.runs.checkpoint import Checkpoints, State
from jaxkd.runs.options import DeviceOptions
from jaxkd.runs.record import Record
from jaxkd.storage import first_line

T = TypeVar("T")

# What is sent is padded to whole blocks: one compiled program serves most messages.
_BLOCK = 1 << 16
_STEPPING = ("log_every", "steps_per_call", "devices", "eval_batch_size", "debug", "stream", "mapping")


class PeerLostError(RuntimeError):
    """Another process of the run ended, or cannot be reached; the last checkpoint stands."""


def join(config: DeviceOptions, say: Callable[[str], None]) -> None:
    """Joins the run's other processes, if the configuration speaks of any; once in a process.

    Nothing may have touched a device before.  A process that waits in vain for the others is ended by JAX
    after five minutes.

    Args:
      config: where the coordinator is, or that the environment says so (Cloud TPU, SLURM, Open MPI).
      say: where progress goes.
    """
    if not (config.distributed or config.coordinator) or jax.distributed.is_initialized():
        return
    # JAX's own way to handle SIGTERM takes the signal away from ours, which also knows Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    where = config.coordinator or "the coordinator that the environment names"
    say(f"joining the other processes at {where} ...")
    jax.distributed.initialize(
        config.coordinator,
        config.num_processes,
        config.process_id,
        heartbeat_timeout_seconds=config.peer_timeout,
        shutdown_timeout_seconds=config.peer_timeout,
    )
    say(
        f"process {jax.process_index()} of {jax.process_count()}, with {jax.local_device_count()} "
        f"of {jax.device_count()} devices"
    )


def is_joint() -> bool:
    """Whether this process is one of several of a run; touches no device unless `join` was called."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all processes, to the bit; all of them have to call this.

    Args:
      make: called in the first process alone; returns None, numbers, text, arrays, or lists and dictionaries
        of those.

    Raises:
      ValueError: in the other processes, if `make` failed in the first one, which raises what `make` raised.
    """
    if jax.process_count() == 1:
        return make()
    if not is_first():
        message = _unpack(_broadcast(b""))
        if "error" in message:
            raise ValueError(f"process 0 says: {message['error']}")
        return message["value"]
    try:
        value = make()
    except Exception as error:
        _broadcast(_pack({"error": str(error)}))
        raise
    _broadcast(_pack({"value": value}))
    return value


def _pack(message: dict[str, Any]) -> bytes:
    return flax.serialization.msgpack_serialize(message)


def _unpack(contents: bytes) -> dict[str, Any]:
    return flax.serialization.msgpack_restore(contents)


def _broadcast(contents: bytes) -> bytes:
    """The first process's bytes; as bytes, since the sum behind the broadcast would turn -0.0 into 0.0."""
    size = np.array(divmod(len(contents), _BLOCK), np.int32)
    blocks, rest = multihost_utils.broadcast_one_to_all(size)
    buffer = np.zeros((int(blocks) + 1) * _BLOCK, np.uint8)
    buffer[: len(contents)] = np.frombuffer(contents, np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer).tobytes()[: int(blocks) * _BLOCK + int(rest)]


def agreed_signal(signal_name: str | None) -> str | None:
    """The signal that came in any process, the same answer in all; all of them have to call this."""
    if jax.process_count() == 1:
        return signal_name
    own = np.array(signal.Signals[signal_name].value if signal_name else 0, np.int32)
    highest = int(multihost_utils.process_allgather(own).max())
    return signal.Signals(highest).name if highest else None


def require_same(identity: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same configuration, teacher and data.

    Raises:
      ValueError: in all processes, if one differs from the first; that one says in what.
    """
    if jax.process_count() == 1:
        return
    first = from_first(lambda: dict(_jsonable(identity)))
    different = differing_keys(first, identity)
    strange = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(different))))
    if different:
        raise ValueError(
            f"process {jax.process_index()} was started with another configuration than process 0; "
            f"{describe_differences(different)}. Start all of them with the same command"
        )
    if strange.size:
        raise ValueError(
            f"process {strange[0]} was started with another configuration than process 0; it says in what"
        )


def _jsonable(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in identity.items()}


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """Turns the failure of a collective operation into a PeerLostError that says what to do."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Gloo's failures arrive as ValueError where JAX checks the status of a copy to the host.
        collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        own_fault = any(
            word in str(error) for word in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "CpuCallback")
        )
        if jax.process_count() == 1 or not collective or own_fault:
            raise
        raise PeerLostError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one "
            f"({first_line(error)}). The last checkpoint stands: start all processes again "
            "with the same command"
        ) from error


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code, without waiting for other processes that may not answer.

    Args:
      code: 0 is success.
    """
    if code != 0 and is_joint():
        # The end is decided; whoever ends the other processes may well send a signal here, too.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        # With the first process the coordination service goes, and JAX ends whoever is connected to it: the
        # others get a moment for a message of their own.
        time.sleep(2.0 if is_first() else 0.0)
        os._exit(code)
    sys.exit(code)


class SharedRecord(Record):
    """The record of a run of several processes: files of the first one, the same lines in all."""

    def result(self) -> dict[str, Any] | None:
        """See `Record`."""
        return from_first(super().result)

    def identity(self) -> dict[str, Any] | None:
        """See `Record`."""
        return from_first(super().identity)

    def open(
        self,
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        devices: list[jax.Device],
        **options: Any,
    ) -> list[str]:
        """See `Record`."""
        # Options that change nothing in the result still decide on which collective operation comes when.
        require_same({**identity, **{key: config.get(key) for key in _STEPPING}})
        return from_first(lambda: super(SharedRecord, self).open(config, identity, devices, **options))

    def rewind(self, step: int) -> None:
        """See `Record`."""
        from_first(lambda: super(SharedRecord, self).rewind(step))
        self._lines = from_first(lambda: self._lines)

    def write(self, kind: str, step: int, epoch: int, **values: float) -> None:
        """See `Record`."""
        if is_first():
            super().write(kind, step, epoch, **values)
        else:
            self._lines.append({"kind": kind, "step": step, "epoch": epoch, **values})

    def flush(self) -> None:
        """See `Record`."""
        if is_first():
            super().flush()

    def finish(self, result: Mapping[str, Any]) -> None:
        """See `Record`."""
        from_first(lambda: super(SharedRecord, self).finish(result))


class SharedCheckpoints(Checkpoints):
    """The checkpoints of a run of several processes: the first one's files, the state for all.

    A state is equal in all processes, so nothing has to be collected for a save, and nobody waits for it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], **options: Any) -> None:
        if is_first():
            super().__init__(folder, identity, **options)

    def save(self, state: State) -> int:
        """See `Checkpoints`."""
        return super().save(state) if is_first() else int(state.step)

    def restore_latest(self, like: State) -> State | None:
        """See `Checkpoints`."""

        def restore() -> dict[str, Any] | None:
            state = super(SharedCheckpoints, self).restore_latest(like)
            return None if state is None else flax.serialization.to_state_dict(state)

        state = from_first(restore)
        return None if state is None else flax.serialization.from_state_dict(like, state)

    def latest_step(self) -> int | None:
        """See `Checkpoints`."""
        return from_first(super().latest_step)


def open_record(folder: Path) -> Record:
    """The record of a run, of one process or several."""
    return Record(folder) if jax.process_count() == 1 else SharedRecord(folder)


def open_checkpoints(folder: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> Checkpoints:
    """The checkpoints of a run, of one process or several; `config` is what its config.json says."""
    kind = Checkpoints if jax.process_count() == 1 else SharedCheckpoints
    return kind(folder, identity, config=config)
