"""The order of the examples: a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The ids of all examples in the order in which an epoch visits them.

    Args:
      num_examples: how many there are.
      seed: the run's seed, at least 0.
      epoch: the epoch, from 1.

    Returns:
      A permutation of `arange(num_examples)`, int32.  It rests on raw Philox words, whose values NumPy
      promises never to change.

    >>> from jaxkd import data
    >>> sorted(data.epoch_order(5, seed=0, epoch=1).tolist())
    [0, 1, 2, 3, 4]
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(num_examples)
    return np.argsort(words, kind="stable").astype(np.int32)


def batches(order: np.ndarray, batch_size: int) -> np.ndarray:
    """Splits an order into batches; the last one is padded with -1.

    Args:
      order: example ids, `[N]`.
      batch_size: examples a batch.

    Returns:
      int32, `[ceil(N / batch_size), batch_size]`.

    >>> batches(np.arange(5), 2).tolist()
    [[0, 1], [2, 3], [4, -1]]
    """
    missing = -len(order) % batch_size
    return np.concatenate([order, np.full(missing, -1)]).astype(np.int32).reshape(-1, batch_size)
