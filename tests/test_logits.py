"""Standardisation, correlation and masked softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd.logits import log_softmax


def logits(shape=(6, 9)):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_standardize_has_mean_zero_and_deviation_one():
    z = jaxkd.standardize(logits() * 5 + 300)
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(-1, ddof=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        jaxkd.standardize(logits().T, axis=0), jaxkd.standardize(logits()).T, rtol=1e-5
    )


def test_standardize_masks_like_slicing():
    x = logits()
    wide = np.concatenate([x, np.full((6, 2), -np.inf, np.float32)], 1)
    z = jaxkd.standardize(wide, where=np.arange(11)[None] < 9)
    np.testing.assert_allclose(z[:, :9], jaxkd.standardize(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(z[:, 9:], 0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -3.7])
def test_constant_logits_are_zero_with_gradient_zero(value):
    x = jnp.full((100,), value)
    weights = jnp.arange(100.0)
    z, gradient = jax.value_and_grad(lambda x: jnp.sum(weights * jaxkd.standardize(x)))(x)
    assert z == 0
    np.testing.assert_array_equal(gradient, 0)
    rho, gradient = jax.value_and_grad(lambda x: jaxkd.pearson(x, weights))(x)
    assert rho == 0
    np.testing.assert_array_equal(gradient, 0)


def test_pearson_is_numpys():
    a, b = logits(), logits()[::-1] + 0.5 * logits()
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(jaxkd.pearson(a, b), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jaxkd.pearson(a * 1e15, b * 1e15), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jaxkd.pearson(a, -a), -1, rtol=1e-6)


def test_log_softmax_of_a_mask():
    x = logits()
    mask = np.arange(9)[None] < 5
    log_p = log_softmax(jnp.where(mask, x, -jnp.inf), mask)
    np.testing.assert_allclose(log_p[:, :5], jax.nn.log_softmax(x[:, :5]), rtol=1e-6)
    np.testing.assert_array_equal(jnp.exp(log_p[:, 5:]), 0)
    gradient = jax.grad(lambda x: jnp.sum(jnp.exp(log_softmax(x, mask)) ** 2))(jnp.where(mask, x, -jnp.inf))
    assert np.all(np.isfinite(gradient))


def test_errors():
    with pytest.raises(TypeError, match="dtype int32"):
        jaxkd.standardize(np.ones((2, 3), np.int32))
    with pytest.raises(ValueError, match="at least 2 classes"):
        jaxkd.standardize(np.ones((2, 1), np.float32))
    with pytest.raises(ValueError, match="same shape"):
        jaxkd.pearson(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="class axis"):
        jaxkd.standardize(np.float32(1.0))
