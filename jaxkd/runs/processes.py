"""Several processes as one run: joining, broadcasting from the first one, agreeing, and losing a peer.

Every process computes the same state from its own shard of each batch.  Only the first one reads and writes
the run's folder and broadcasts what the others need, so they need no shared disk.
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

# Messages are padded to whole blocks: one compiled program serves most of them.
_BLOCK = 1 << 16
_STEPPING = ("log_every", "steps_per_call", "devices", "eval_batch_size", "debug", "stream", "mapping")


class PeerLostError(RuntimeError):
    """Another process of the run ended, or cannot be reached; the last checkpoint is intact."""


def join(config: DeviceOptions, say: Callable[[str], None]) -> None:
    """Joins the run's other processes, if the configuration names any; once per process.

    No device may have been used before.  JAX ends a process that waits for the others for more than five
    minutes.

    Args:
      config: the coordinator's address, or that the environment provides it (Cloud TPU, SLURM, Open MPI).
      say: callback for progress lines.
    """
    if not (config.distributed or config.coordinator) or jax.distributed.is_initialized():
        return
    # JAX's own SIGTERM handler would replace ours, which also handles Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    where = config.coordinator or "the coordinator named by the environment"
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
    """Whether this process is one of several of a run; uses no device unless `join` was called."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """Returns the first process's `make()` in all processes, bit for bit; all of them must call this.

    Args:
      make: called only in the first process; returns None, numbers, text, arrays, or lists and dictionaries
        of those.

    Raises:
      ValueError: in the other processes, if `make` failed in the first one, which raises the original error.
    """
    if jax.process_count() == 1:
        return make()
    if not is_first():
        message = _unpack(_broadcast(b""))
        if "error" in message:
            raise ValueError(f"process 0 failed: {message['error']}")
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
    """The signal received by any process, the same answer in all; all of them must call this."""
    if jax.process_count() == 1:
        return signal_name
    own = np.array(signal.Signals[signal_name].value if signal_name else 0, np.int32)
    highest = int(multihost_utils.process_allgather(own).max())
    return signal.Signals(highest).name if highest else None


def require_same(identity: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same configuration, teacher and data.

    Raises:
      ValueError: in all processes, if one differs from the first; that one names the differences.
    """
    if jax.process_count() == 1:
        return
    first = from_first(lambda: dict(_jsonable(identity)))
    different = differing_keys(first, identity)
    strange = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(different))))
    if different:
        raise ValueError(
            f"process {jax.process_index()} was started with a different configuration than process 0; "
            f"{describe_differences(different)}. Start all of them with the same command"
        )
    if strange.size:
        raise ValueError(
            f"process {strange[0]} was started with a different configuration than process 0; "
            "its own message names the differences"
        )


def _jsonable(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in identity.items()}


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """Turns the failure of a collective operation into a PeerLostError that says what to do."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Gloo's failures arrive as ValueError when JAX checks the status of a copy to the host.
        collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        own_fault = any(
            word in str(error) for word in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "CpuCallback")
        )
        if jax.process_count() == 1 or not collective or own_fault:
            raise
        raise PeerLostError(
            f"process {jax.process_index()} of {jax.process_count()} lost a peer "
            f"({first_line(error)}). The last checkpoint is intact: start all processes again "
            "with the same command"
        ) from error


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code, without waiting for other processes that may not answer.

    Args:
      code: 0 is success.
    """
    if code != 0 and is_joint():
        # This process is exiting; whatever ends the others may send a signal here too.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        # The coordination service ends with the first process, and JAX then ends all connected processes:
        # give them a moment for their own messages.
        time.sleep(2.0 if is_first() else 0.0)
        os._exit(code)
    sys.exit(code)


class SharedRecord(Record):
    """The record of a run with several processes: the first one writes files, all hold the same lines."""

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
        # Options that do not affect the result still determine the order of collective operations.
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
    """The checkpoints of a run with several processes: the first one's files, the state for all.

    A state is equal in all processes, so a save gathers nothing, and no process waits for it.
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
    """The record of a run, with one process or several."""
    return Record(folder) if jax.process_count() == 1 else SharedRecord(folder)


def open_checkpoints(folder: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> Checkpoints:
    """The checkpoints of a run, with one process or several; `config` is the contents of its config.json."""
    kind = Checkpoints if jax.process_count() == 1 else SharedCheckpoints
    return kind(folder, identity, config=config)
