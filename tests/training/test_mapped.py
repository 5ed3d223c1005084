"""Compiled programs: shared by runs of one shape, freed when they are forgotten."""

from __future__ import annotations

import gc

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps

from jaxkd import data, models
from jaxkd.models.network import AXIS
from jaxkd.training import mapped


def programs() -> int:
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


def test_what_is_not_kept_any_more_is_freed() -> None:
    """Before, JAX kept every program of `jax.pmap` for the life of the process: 27 MB a method."""

    @mapped._kept
    def make(factor: int):  # type: ignore[no-untyped-def]
        return jax.pmap(lambda x: factor * x, devices=jax.devices()[:1])

    x = jnp.ones((1, 3))
    assert make(0) is make(0)
    for factor in range(mapped._KEPT):
        make(factor)(x)
    before = programs()
    for factor in range(100, 100 + 3 * mapped._KEPT):
        make(factor)(x)
    assert programs() == before
    assert make(113) is not make(101)
    assert float(make(0)(x)[0, 0]) == 0  # made again


def test_arguments_that_cannot_be_compared_are_made_anew() -> None:
    make = mapped._kept(lambda _: jax.pmap(lambda x: x, devices=jax.devices()[:1]))
    assert make([]) is not make([])


@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_programs_of_both_mappings_are_freed(mapping: mapped.Mapping) -> None:
    @mapped._kept
    def make(factor: int):  # type: ignore[no-untyped-def]
        devices = tuple(jax.devices()[:2])
        return mapped._map(lambda x: jax.lax.psum(factor * x, AXIS), devices, mapping, [True], same=True)

    x = np.ones((2, 3), np.float32)
    for factor in range(mapped._KEPT):
        assert make(factor)(x).tolist() == [2 * factor] * 3
    before = programs()
    for factor in range(100, 100 + 2 * mapped._KEPT):
        make(factor)(x)
    assert programs() == before


@pytest.mark.parametrize(
    ("num_devices", "per_call"),
    [(2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((8, 2), (8, 1)))],
)
def test_both_mappings_make_the_same_bits(dataset: data.Dataset, num_devices: int, per_call: int) -> None:
    """Batch norm, a loss on the batch of all devices, padding, and several steps in a call."""
    teacher = models.from_linen(helpers.Tiny(width=9), name="teacher").normalized((0.3,), (0.2,))
    task = steps.task(dataset, "dist", teacher=teacher)
    (one, losses), (other, others) = (
        steps.run(task, dataset, num_devices, 4, per_call, mapping=mapping)
        for mapping in ("pmap", "shard_map")
    )
    assert losses == others
    jax.tree.map(np.testing.assert_array_equal, one, other)
