"""Feeds batches to the devices: from a split that is resident there, or streaming from the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxkd.data import Split, StreamedSplit
from jaxkd.data.batch import Batch
from jaxkd.data.streaming import in_memory
from jaxkd.devices import local_rows, replicate, share


class Feed(Protocol):
    """A source of batches.

    Attributes:
      resident: what `fetch` takes; placed once, the same at every step.
    """

    resident: Any

    def __call__(self, steps: np.ndarray, epoch: int | None = None) -> Iterator[Batch]:
        """The batches of some steps, one after the other.

        Args:
          steps: the example ids of each step, over all devices, int32 `[S, B]`; -1 for padding.
          epoch: of the views, from 1; None for evaluation.

        Yields:
          For each step the shares of this process's devices, `[D, B / D, ...]`.
        """
        ...


class ResidentFeed:
    """A split resident on every device, as uint8; each step sends the ids alone."""

    def __init__(self, split: Split, devices: Sequence[jax.Device]) -> None:
        self.resident = replicate((split.images, split.labels), devices)
        self._num_devices = len(devices)
        self._own = local_rows(devices)

    def __call__(self, steps: np.ndarray, epoch: int | None = None) -> Iterator[Batch]:
        """See `Feed`; the views are made on the device."""
        for ids in steps:
            yield Batch(ids=share(ids, self._num_devices)[self._own])


class StreamedFeed:
    """A split on the host; each step transfers its images, and each process reads its own share."""

    resident = None

    def __init__(self, split: StreamedSplit, devices: Sequence[jax.Device], seed: int) -> None:
        self._split = split
        self._num_devices = len(devices)
        self._own = local_rows(devices)
        self._seed = seed

    def __call__(self, steps: np.ndarray, epoch: int | None = None) -> Iterator[Batch]:
        """See `Feed`; views that are not made here are made on the device, as for a resident split."""
        shared = share(steps, self._num_devices)[self._own].swapaxes(0, 1)  # [S, D, B / D]
        read = self._split.batches(shared.reshape(len(steps), -1), seed=self._seed, epoch=epoch)
        for ids, (images, labels) in zip(shared, read, strict=True):
            yield Batch(ids, images.reshape(*ids.shape, *images.shape[1:]), labels.reshape(ids.shape))


def open_feed(
    split: Split | StreamedSplit,
    devices: Sequence[jax.Device],
    *,
    seed: int = 0,
    stream: bool = False,
    workers: int = 0,
) -> Feed:
    """The feed that suits a split.

    Args:
      split: in memory, or streamed.
      devices: of all processes.
      seed: the run's; it decides on the views of a streamed split.
      stream: whether to stream a split that is in memory, too.
      workers: processes that read a streamed split; 0 for threads.
    """
    if isinstance(split, Split) and not stream:
        return ResidentFeed(split, devices)
    if isinstance(split, Split):
        split = in_memory(split.images, split.labels)
    return StreamedFeed(dataclasses.replace(split, workers=workers), devices, seed)


def stack(batches: Sequence[Batch]) -> Batch:
    """The batches of several steps as one: `[D, B / D, ...]` each to `[D, S, B / D, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *batches)
