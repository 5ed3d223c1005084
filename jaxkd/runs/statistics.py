"""Statistics over several runs of a method: mean, deviation, and differences with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean and standard deviation (of the sample: divided by n - 1) of `number` values."""

    mean: float
    deviation: float | None
    number: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and number of values; a single value has no deviation.

    >>> spread([70.0, 72.0, 74.0])
    Spread(mean=72.0, deviation=2.0, number=3)
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


class Difference(NamedTuple):
    """A mean difference over `number` seeds, and its confidence interval; None for one seed."""

    mean: float
    interval: tuple[float, float] | None
    number: int

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval that does not contain 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """The mean of `values[seed] - baseline[seed]`, with the interval of Student's t.

    `mean +- t_{n-1} s / sqrt(n)`, where s is the standard deviation of the n differences.  Runs of one seed
    have the same initial student, order and views, so much of their randomness cancels in the difference.

    Args:
      values: maps seeds to accuracies.
      baseline: the same for the baseline; seeds that only one of them has are ignored.
      confidence: the share of such intervals that contain the true mean, if differences are normal.

    Returns:
      The difference; None if no seed is in both.

    >>> paired_difference({0: 72.0, 1: 74.0, 5: 99.0}, {0: 71.0, 1: 71.0})
    Difference(mean=2.0, interval=(-10.706..., 14.706...), number=2)
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    mean, deviation, count = spread(differences)
    if deviation is None:
        return Difference(mean, None, count)
    from scipy.special import stdtrit  # comes with jax; imported here, since most importers do not need it

    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * deviation / math.sqrt(count)
    return Difference(mean, (mean - half, mean + half), count)


def sampling_error(accuracy: float, num_examples: int) -> float:
    """The standard error of an accuracy, in points, due to the sampling of the test examples.

    `100 sqrt(p (1 - p) / N)`.

    Args:
      accuracy: in percent.
      num_examples: N, the size of the test split.

    >>> sampling_error(50.0, 10_000)
    0.5
    """
    share = accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / num_examples)
