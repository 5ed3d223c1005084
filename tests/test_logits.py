"""Standardisation, correlation and masked softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import losses, standardize, temperature
from jaxkd.logits import ensemble, log_softmax


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


def test_pearson_of_what_is_not_finite_is_not():
    a, constant = logits((1, 9)), np.ones((1, 9), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        poisoned = a.copy()
        poisoned[0, 3] = bad
        for other in (a, constant):
            assert np.isnan(jaxkd.pearson(poisoned, other)[0])
            assert np.isnan(jaxkd.pearson(other, poisoned)[0])
        assert np.all(np.isnan(standardize(poisoned)))


def test_an_ensemble_is_the_mean_of_softmaxes_at_its_temperature():
    student, teachers = logits((4, 9)), 3 * np.random.default_rng(1).standard_normal((3, 4, 9), np.float32)
    for tau in (4.0, np.linspace(1, 5, 4, dtype=np.float32)[:, None]):
        p = jax.nn.softmax(teachers / tau).mean(0)
        merged = ensemble(teachers, temperature=tau)
        np.testing.assert_allclose(jax.nn.softmax(merged / tau), p, rtol=1e-5)
        log_q = jax.nn.log_softmax(student / tau)
        expected = np.ravel(np.square(tau)) * jnp.sum(p * (jnp.log(p) - log_q), -1)
        np.testing.assert_allclose(losses.kd(student, merged, temperature=tau), expected, rtol=2e-4)
    np.testing.assert_allclose(ensemble(teachers, of="logits"), teachers.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ensemble(teachers[:1]), log_softmax(teachers[0]), rtol=1e-5)


def test_an_ensemble_masks_like_slicing():
    teachers = np.random.default_rng(1).standard_normal((3, 4, 9), np.float32)
    mask = np.arange(9)[None] < 6
    for of in ("probabilities", "logits"):
        merged = ensemble(teachers, of=of, temperature=2.0, where=mask)
        sliced = ensemble(teachers[..., :6], of=of, temperature=2.0)
        np.testing.assert_allclose(merged[:, :6], sliced, rtol=1e-5)
        np.testing.assert_array_equal(merged[:, 6:], -np.inf)
        student = logits((4, 9))
        loss = losses.kd(student, merged, temperature=temperature.max_logit, where=mask)
        np.testing.assert_allclose(
            loss, losses.kd(student[:, :6], sliced, temperature=temperature.max_logit), rtol=1e-4
        )


def test_errors():
    with pytest.raises(ValueError, match='"probabilities" or "logits"'):
        ensemble(np.ones((2, 3), np.float32), of="votes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"M, \.\.\., K"):
        ensemble(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="temperature must be positive"):
        ensemble(np.ones((2, 3), np.float32), temperature=0.0)
    with pytest.raises(TypeError, match="dtype int32"):
        jaxkd.standardize(np.ones((2, 3), np.int32))
    with pytest.raises(ValueError, match="at least 2 classes"):
        jaxkd.standardize(np.ones((2, 1), np.float32))
    with pytest.raises(ValueError, match="same shape"):
        jaxkd.pearson(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="class axis"):
        jaxkd.standardize(np.float32(1.0))
