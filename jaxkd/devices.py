"""Devices: their choice, the placement of arrays, and the sharding of batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.models.network import AXIS


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
    """Puts a copy of every array on every device, unless it is already there."""
    everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())

    def place(leaf: Any) -> jax.Array:
        # What pmap returned knows this process's devices alone, and cannot be put on those of others again.
        # On one device every array is already there, but only pmap's kind of array avoids recompilation.
        mapped = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
        placed = mapped and leaf.sharding.device_set >= everywhere.addressable_devices
        return leaf if placed and leaf.is_fully_replicated else jax.device_put(leaf, everywhere)

    return jax.tree.map(place, tree)


def share(ids: np.ndarray, num_devices: int, num_parts: int = 1) -> np.ndarray:
    """Shares out batches of ids `[..., B]` to devices: `[D, ..., B / D]`.

    Raises:
      ValueError: the batch size is not a multiple of the number of devices, or a device's share cannot be cut
        into `num_parts` equal micro-batches.

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
            f"a batch of {batch_size} on {num_devices} devices cannot be cut into {num_parts} equal "
            f"micro-batches; choose a multiple of {num_devices * num_parts} with --batch-size, or another "
            "number with --accumulate"
        )
    parts = ids.reshape(*ids.shape[:-1], num_devices, batch_size // num_devices)
    return np.moveaxis(parts, -2, 0)
