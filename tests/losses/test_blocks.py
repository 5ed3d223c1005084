"""Large logits on a CPU go through blocks of rows: nothing but the time may change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, temperature
from jaxkd.losses import _blocks

WAYS = {
    "number": {"temperature": 2.0, "standardize": True},
    "adaptive": {"temperature": temperature.max_logit, "standardize": True},
    "option": {"temperature": functools.partial(temperature.max_logit, of="teacher")},
    "with a gradient": {"temperature": functools.partial(temperature.standard_deviation, of="student")},
}


def logits():
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))


@pytest.fixture
def blocks_of_three(monkeypatch):
    """Makes the smallest arrays large, for the code under test only inside the returned context."""

    def switch(on):
        monkeypatch.setattr(_blocks, "MIN_SIZE", 1 if on else 2**23)
        monkeypatch.setattr(_blocks, "BLOCK_SIZE", 3 * 5)

    return switch


@pytest.mark.parametrize("way", WAYS)
def test_value_and_derivatives_are_those_of_the_whole(way, blocks_of_three):
    with jax.enable_x64(True):
        s, t = map(jnp.asarray, logits())
        direction = jnp.cos(jnp.arange(60.0)).reshape(s.shape)
        keep = jnp.arange(12).reshape(3, 4) % 5 > 0

        def derivatives(on):
            blocks_of_three(on)

            def value(s):
                return losses.kd(s, t, where=keep, **WAYS[way])

            def slope(s):
                return jax.grad(lambda s: jnp.sum(jnp.sin(value(s))))(s)

            assert ("scan" in str(jax.make_jaxpr(value)(s))) == on
            second = jax.jvp(slope, (s,), (direction,))[1]
            return value(s), slope(s), jax.jvp(value, (s,), (direction,))[1], second

        for a, b in zip(derivatives(True), derivatives(False), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_what_must_not_be_cut_is_not(blocks_of_three):
    blocks_of_three(True)
    shape = (3, 4, 5)
    assert _blocks.rows_per_block(shape, 4.0) == 3
    assert _blocks.rows_per_block(shape, temperature.max_logit) == 3
    # An array has a row for each example, and a function of the user's may have closed over a parameter.
    assert _blocks.rows_per_block(shape, np.ones((3, 4, 1))) == 0
    assert _blocks.rows_per_block(shape, lambda s, t: jnp.ones((*s.shape[:-1], 1))) == 0
    assert _blocks.rows_per_block(shape, functools.partial(temperature.constant, value=jnp.ones(()))) == 0
    blocks_of_three(False)
    assert _blocks.rows_per_block(shape, 4.0) == 0
