"""Compiled programs: shared by runs of one shape, freed when they are forgotten."""

from __future__ import annotations

import gc

import jax
import jax.numpy as jnp

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
