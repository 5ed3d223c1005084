"""Putting the pure steps on devices: pmap, replication, several steps a call, sharing out of batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.data import View
from jaxkd.training.state import TrainState
from jaxkd.training.step import (
    AXIS,
    Batch,
    Network,
    Task,
    eval_step,
    gather,
    teacher_logits,
    train_step,
)

# In one call on TPU and GPU.  On a CPU the gradients of convolutions inside an XLA loop fall back to a
# naive implementation, 14 to 43 times slower (jax-ml/jax#12868), so there it is one.
_STEPS_PER_CALL = {"cpu": 1}
_STEPS_PER_CALL_ELSEWHERE = 25


def default_steps_per_call(devices: Sequence[jax.Device]) -> int:
    """How many training steps one call makes on these devices."""
    return _STEPS_PER_CALL.get(devices[0].platform, _STEPS_PER_CALL_ELSEWHERE)


def choose_devices(count: int | None) -> list[jax.Device]:
    """The first `count` devices of each process, process by process; all of them for None.

    Raises:
      ValueError: there are not so many.
    """
    everywhere = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    of_process = [list(group) for _, group in itertools.groupby(everywhere, lambda d: d.process_index)]
    fewest = min(map(len, of_process))
    if count is not None and not 1 <= count <= fewest:
        raise ValueError(
            f"devices must be from 1 to {fewest} ({everywhere[0].platform}) on this machine, got {count}"
        )
    return [device for group in of_process for device in group[: count or fewest]]


def local_rows(devices: Sequence[jax.Device]) -> np.ndarray:
    """Which of `devices` are this process's own: indices into what `share` returns."""
    return np.flatnonzero([device.process_index == jax.process_index() for device in devices])


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts a copy of every array on every device, unless it lies there already."""
    everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())

    def place(leaf: Any) -> Any:
        # What pmap returned knows this process's devices alone, and cannot be put on those of others again.
        # On one device, any array lies there, but only one of pmap's kind saves a second compilation.
        mapped = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
        placed = mapped and leaf.sharding.device_set >= everywhere.addressable_devices
        return leaf if placed and leaf.is_fully_replicated else jax.device_put(leaf, everywhere)

    return jax.tree.map(place, tree)


def share(ids: np.ndarray, num_devices: int, num_parts: int = 1) -> np.ndarray:
    """Shares out batches of ids `[..., B]` to devices: `[D, ..., B / D]`.

    Raises:
      ValueError: the batch size is not a multiple of the number of devices, or no device's share can be cut
        into `num_parts` equal parts.

    >>> share(np.array([[0, 1, 2, 3]]), 2).tolist()
    [[[0, 1]], [[2, 3]]]
    """
    batch_size = ids.shape[-1]
    if batch_size % num_devices:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared equally by {num_devices} devices; "
            f"choose a multiple of {num_devices} with --batch-size, or fewer devices with --devices"
        )
    if batch_size % (num_devices * num_parts):
        raise ValueError(
            f"a batch of {batch_size} on {num_devices} devices cannot be accumulated from {num_parts} equal "
            f"parts; choose a multiple of {num_devices * num_parts} with --batch-size, or other parts with "
            "--accumulate"
        )
    parts = ids.reshape(*ids.shape[:-1], num_devices, batch_size // num_devices)
    return np.moveaxis(parts, -2, 0)


def pmapped_train_step(task: Task, devices: Sequence[jax.Device]) -> Callable[..., TrainState]:
    """`train_step` on several devices: `(state, teacher_variables, resident, batches) -> state`.

    `resident` is what `gather` takes; `batches` is a `Batch` of `[D, S, B / D, ...]`: S steps are made in one
    call.  The state's buffers are donated.
    """

    unroll = devices[0].platform == "cpu"  # loops are slow there, see _STEPS_PER_CALL

    def steps(state: TrainState, teacher: Any, resident: Any, batches: Batch, seed: Any) -> TrainState:
        # An argument, so that one compiled program serves all seeds.
        seeded = dataclasses.replace(task, seed=seed)

        def step(before: TrainState, batch: Batch) -> tuple[TrainState, None]:
            return train_step(seeded, before, teacher, gather(resident, batch), unroll=unroll), None

        if batches.ids.shape[0] == 1:
            return step(state, jax.tree.map(lambda leaf: leaf[0], batches))[0]
        return jax.lax.scan(step, state, batches)[0]

    mapped = jax.pmap(
        steps,
        axis_name=AXIS,
        in_axes=(None, None, None, 0, None),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )
    seed = np.uint32(task.seed % 2**32)  # all of a seed that JAX's keys take in
    return lambda state, teacher, resident, batches: mapped(state, teacher, resident, batches, seed)


def pmapped_eval_step(network: Network, devices: Sequence[jax.Device]) -> Callable[..., dict[str, jax.Array]]:
    """`eval_step` on several devices: `(variables, resident, batch [D, B / D, ...]) -> sums`."""
    return jax.pmap(
        lambda variables, resident, batch: eval_step(network, variables, gather(resident, batch)),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
    )


def pmapped_teacher_logits(
    network: Network, view: View, dtype: str, devices: Sequence[jax.Device]
) -> Callable[..., jax.Array]:
    """`teacher_logits` on several devices: `(variables, resident, batch, numbers [D, B / D])`."""

    def logits(variables: Any, resident: Any, batch: Batch, numbers: jax.Array) -> jax.Array:
        return teacher_logits(network, view, variables, gather(resident, batch), numbers).astype(dtype)

    return jax.pmap(logits, axis_name=AXIS, in_axes=(None, None, 0, 0), devices=devices)
