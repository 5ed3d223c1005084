"""Metrics: sums that add up, quantiles that are those of the sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.metrics import Bins, Histogram, Mean, Metric, Percentage, merge, zeros_like


def test_quantiles_are_those_of_the_sample_to_a_bin() -> None:
    sample = np.random.default_rng(0).lognormal(1.0, 0.3, 20_000)
    histogram = jax.jit(Histogram.of)(jnp.asarray(sample), jnp.ones(len(sample), bool))
    for fraction in (0.05, 0.5, 0.95):
        assert histogram.quantile(fraction) == pytest.approx(np.quantile(sample, fraction), rel=0.01)
    assert histogram.compute()[""] == pytest.approx(sample.mean(), rel=1e-5)
    about = histogram.describe()
    assert sum(about["counts"]) == 20_000
    assert len(about["edges"]) == len(about["counts"]) + 1
    assert about["edges"][0] <= sample.min()
    assert about["edges"][-1] >= sample.max()


def test_what_lies_outside_of_the_bins_is_counted_there() -> None:
    histogram = Histogram.of(jnp.array([0.01, 2.0, 99.0]), jnp.ones(3, bool), Bins(1.0, 4.0, 2))
    assert histogram.counts.tolist() == [1, 1, 0, 1]
    assert histogram.describe()["counts"] == [1.0]
    assert histogram.describe()["outside"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", [Mean, Percentage, Histogram])
def test_parts_add_up_to_the_whole_and_masked_examples_do_not_count(kind: type) -> None:
    values, where = jnp.array([1.0, 0.0, 1.0, jnp.nan, 1.0]), jnp.array([True, True, True, False, True])
    whole = kind.of(values, where)
    parts = merge(kind.of(values[:2], where[:2]), kind.of(values[2:], where[2:]))
    assert isinstance(whole, Metric)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, parts))
    assert whole.compute()[""] == pytest.approx(75 if kind is Percentage else 0.75)
    empty = zeros_like(jax.eval_shape(kind.of, values, where))
    assert jax.tree.all(jax.tree.map(np.array_equal, merge(empty, whole), whole))
    assert np.isnan(empty.compute()[""])
    assert str(whole)
