"""Metrics: sums that a step makes on a device, that add up over devices, micro-batches and steps.

A metric is a tree of sums and nothing else.  So `merge` is addition, and its total over devices is a `psum`.
The step, the loop and the report know no metric's name; `compute` gives the numbers that a log shows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Numbers = dict[str, float]


@runtime_checkable
class Metric(Protocol):
    """What a method may report; every leaf of the tree is a sum over examples."""

    def compute(self) -> Numbers:
        """The numbers to log: "" is the metric itself, and "p5", say, is logged as NAME_p5."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a result and a figure need, ready for JSON; `str(metric)` is for progress lines."""
        ...


def merge(first: Any, second: Any) -> Any:
    """The sums of two metrics, or of two trees of metrics, together."""
    return jax.tree.map(jnp.add, first, second)


@flax.struct.dataclass
class Mean:
    """An average over examples.

    >>> import jax.numpy as jnp
    >>> mean = Mean.of(jnp.array([1.0, 5.0, 9.0]), jnp.array([True, True, False]))
    >>> mean.compute()
    {'': 3.0}
    """

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array) -> Self:
        """The mean of values `[B]` over the examples in `where` `[B]`; a scalar stands for all of them."""
        return cls(total(values, where), jnp.sum(where, dtype=jnp.float32))

    def compute(self) -> Numbers:
        """The mean; NaN without an example."""
        return {"": float(self.total) / float(self.count) if self.count else float("nan")}

    def describe(self) -> dict[str, Any]:
        """The mean, ready for JSON."""
        return {"mean": self.compute()[""]}

    def __str__(self) -> str:
        return f"{self.compute()['']:.4f}"


@flax.struct.dataclass
class Percentage(Mean):
    """The share of the examples for which something is true, in percent.

    >>> import jax.numpy as jnp
    >>> Percentage.of(jnp.array([1.0, 0.0]), jnp.array([True, True])).compute()
    {'': 50.0}
    """

    def compute(self) -> Numbers:
        """The share in percent; NaN without an example."""
        return {"": 100 * super().compute()[""]}

    def __str__(self) -> str:
        return f"{self.compute()['']:.2f} %"


class Bins(NamedTuple):
    """Bins of equal width on a logarithmic scale, from `low` to `high`."""

    low: float
    high: float
    number: int

    @property
    def edges(self) -> np.ndarray:
        """The edges, `[number + 1]`."""
        return np.logspace(np.log10(self.low), np.log10(self.high), self.number + 1)


# 256 bins a decade: a quantile that is read from them is right to 1 %.
TEMPERATURES = Bins(0.1, 1000.0, 4 * 256)


@flax.struct.dataclass
class Histogram:
    """A distribution of positive values over examples: its mean, and quantiles to the width of a bin.

    Attributes:
      mean: of the values themselves.
      counts: float32 `[bins.number + 2]`; the first and the last count values outside the bins.
      bins: where values are counted.

    >>> import jax.numpy as jnp
    >>> histogram = Histogram.of(jnp.array([1.0, 2.0, 2.0, 3.0]), jnp.ones(4, bool), Bins(0.5, 4.0, 3))
    >>> histogram.compute()[""], histogram.describe()["counts"]
    (2.0, [1.0, 2.0, 1.0])
    """

    mean: Mean
    counts: jax.Array
    bins: Bins = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array, bins: Bins = TEMPERATURES) -> Self:
        """The distribution of values `[B]` over the examples in `where` `[B]`; a scalar stands for all."""
        values = jnp.broadcast_to(values, where.shape)
        # Comparisons instead of a scatter: as fast, and the same on every platform.
        places = jnp.searchsorted(jnp.asarray(bins.edges, jnp.float32), values)
        hits = (places[:, None] == jnp.arange(bins.number + 2)) & where[:, None]
        return cls(Mean.of(values, where), jnp.sum(hits, axis=0, dtype=jnp.float32), bins)

    def compute(self) -> Numbers:
        """Mean, median, 5 and 95 % quantile."""
        quantiles = {f"p{percent}": self.quantile(percent / 100) for percent in (5, 50, 95)}
        return {**self.mean.compute(), **quantiles}

    def __str__(self) -> str:
        numbers = self.compute()
        if np.count_nonzero(self.counts) < 2:  # one value falls into one bin
            return f"{numbers['']:.2f}"
        return f"{numbers['']:.2f} ({numbers['p5']:.2f}-{numbers['p95']:.2f})"

    def quantile(self, fraction: float) -> float:
        """The quantile: the value below which this fraction of the examples is; at most the bins' edges."""
        edges = np.pad(self.bins.edges, 1, mode="edge")
        reached = np.concatenate([[0.0], np.cumsum(np.asarray(self.counts))])
        wanted = fraction * reached[-1]
        index = max(int(np.searchsorted(reached, wanted, side="left")), 1)
        inside = (wanted - reached[index - 1]) / max(reached[index] - reached[index - 1], 1e-9)
        return float(edges[index - 1] + inside * (edges[index] - edges[index - 1]))

    def describe(self) -> dict[str, Any]:
        """Everything that a figure needs, ready for JSON; empty bins at both ends are left out.

        `outside` is the share of the values that lie outside the bins, if any do.
        """
        counts = np.asarray(self.counts)
        used = np.flatnonzero(counts[1:-1])
        bins = slice(used[0], used[-1] + 1) if used.size else slice(0, 0)
        numbers = self.compute()
        outside = float(counts[0] + counts[-1])
        return {
            "mean": numbers.pop(""),
            **numbers,
            "counts": counts[1:-1][bins].tolist(),
            "edges": self.bins.edges[bins.start : bins.stop + 1].tolist(),
            **({"outside": outside / float(counts.sum())} if outside else {}),
        }


def total(values: jax.Array, where: jax.Array) -> jax.Array:
    """The sum of values `[B]` over `where` `[B]`; a scalar counts once for each of these examples.

    Raises:
      ValueError: the values have another shape.
    """
    if values.ndim:
        if values.shape != where.shape:
            raise ValueError(
                f"values must be one for each example, {list(where.shape)}, or a scalar, got "
                f"{list(values.shape)}"
            )
        return jnp.sum(jnp.where(where, values, 0.0))
    return values * jnp.sum(where, dtype=jnp.float32)


def zeros_like(tree: Any) -> Any:
    """A tree of metrics before the first example; `tree` may hold shapes alone."""
    # Made on the host, and an array for each leaf: a buffer can be donated only once.
    return jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), tree)


def numbers(metrics: dict[str, Any]) -> Numbers:
    """The numbers of several metrics, by name: "temperature", "temperature_p5", and so on.

    >>> import jax.numpy as jnp
    >>> numbers({"loss": Mean(jnp.float32(6), jnp.float32(3))})
    {'loss': 2.0}
    """
    return {
        f"{name}_{part}" if part else name: value
        for name, metric in metrics.items()
        for part, value in metric.compute().items()
    }
