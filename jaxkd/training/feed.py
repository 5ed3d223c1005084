"""What brings batches to the devices: from a split that lies there whole, or streamed from the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxkd.data import Split
from jaxkd.training.parallel import local_rows, replicate, share
from jaxkd.training.step import Batch


class Feed(Protocol):
    """A source of batches.

    Attributes:
      resident: what `gather` takes; placed once, the same at every step.
    """

    resident: Any

    def __call__(self, steps: np.ndarray, epoch: int | None = None) -> Iterator[Batch]:
        """The batches of some steps, one after the other.

        Args:
          steps: the example ids of each step, over all devices, int32 `[S, B]`; -1 stands for no example.
          epoch: whose views are wanted, from 1; None for evaluation.

        Yields:
          For each step the shares of this process's devices, `[D, B / D, ...]`.
        """
        ...


class ResidentFeed:
    """A split that lies on every device, as uint8; each step sends the ids alone."""

    def __init__(self, split: Split, devices: Sequence[jax.Device]) -> None:
        self.resident = replicate((split.images, split.labels), devices)
        self._num_devices = len(devices)
        self._own = local_rows(devices)

    def __call__(self, steps: np.ndarray, epoch: int | None = None) -> Iterator[Batch]:
        """See `Feed`; the views are made on the device."""
        for ids in steps:
            yield Batch(ids=share(ids, self._num_devices)[self._own])


def open_feed(split: Split, devices: Sequence[jax.Device]) -> Feed:
    """The feed that suits a split."""
    return ResidentFeed(split, devices)


def stack(batches: Sequence[Batch]) -> Batch:
    """The batches of several steps as one: `[D, B / D, ...]` each to `[D, S, B / D, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *batches)
