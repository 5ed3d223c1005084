"""Pieces that go before a loss or beside it: repaired teachers, weights of examples, transport."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

S = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
T = 2 * np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
Y = np.array([0, 1, 2, 3, 4, 0])


def test_repair_in_numpy():
    swapped, ordered = T.copy(), T.copy()
    for row, (t, y) in enumerate(zip(T, Y, strict=True)):
        top = t.argmax()
        swapped[row, [y, top]] = t[[top, y]]
        order = [y, *(k for k in np.argsort(-t) if k != y)]
        ordered[row, order] = np.sort(t)[::-1]
    np.testing.assert_array_equal(losses.repair(T, Y), swapped)
    np.testing.assert_array_equal(losses.repair(T, Y, how="sort"), ordered)
    np.testing.assert_array_equal(losses.repair(T.T, Y, axis=0), swapped.T)


@pytest.mark.parametrize("how", ["swap", "sort"])
def test_repair_leaves_what_is_right_or_masked(how):
    right = T.argmax(-1)
    np.testing.assert_array_equal(losses.repair(T, right, how=how), T)
    repaired = losses.repair(T, np.where(Y == 0, -100, Y), how=how, ignore_index=-100)
    np.testing.assert_array_equal(repaired[Y == 0], T[Y == 0])
    classes = np.arange(5) < 4
    wide = np.where(classes, T, 99.0)
    of_part = losses.repair(wide, Y, how=how, where=np.broadcast_to(classes, T.shape))
    known = Y < 4
    np.testing.assert_array_equal(of_part[known][:, :4], losses.repair(T[known][:, :4], Y[known], how=how))
    np.testing.assert_array_equal(of_part[:, 4], 99)
    np.testing.assert_array_equal(of_part[~known], wide[~known])
    wrong = jax.jit(lambda y: losses.repair(T, y, how=how))(np.where(Y == 0, 5, Y))
    np.testing.assert_array_equal(np.isnan(wrong).all(-1), Y == 0)
    assert np.all(losses.repair(T, Y, how=how).argmax(-1) == Y)
    assert np.all(jax.grad(lambda t: losses.repair(t, Y, how=how).sum())(T) == 0)
    with pytest.raises(ValueError, match='"swap" or "sort"'):
        losses.repair(T, Y, how="both")


def test_entropy_weights_in_numpy():
    def entropy(x):
        p = np.exp(x / 3) / np.exp(x / 3).sum(-1, keepdims=True)
        return -(p * np.log(p)).sum(-1)

    expected = (entropy(T) + entropy(T) * entropy(S) / 100) / 2
    np.testing.assert_allclose(losses.entropy_weights(S, T), expected, rtol=1e-5)
    keep = Y > 0
    np.testing.assert_allclose(losses.entropy_weights(S, T, where=keep), expected * keep, rtol=1e-5)
    assert np.all(jax.grad(lambda s: losses.entropy_weights(s, T).sum())(S) == 0)


def test_transport_is_finite_and_masks():
    cost = 1 - np.eye(5, dtype=np.float32)
    for s, t in ((1e4 * np.sign(S), -1e4 * np.sign(T)), (0 * S, 0 * T)):
        value, gradient = jax.value_and_grad(lambda s, t=t: losses.wkd(s, t, Y, cost).sum())(s)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
    keep = Y > 0
    poisoned = np.where(keep[:, None], S, np.nan)
    actual = losses.wkd(poisoned, T, np.where(keep, Y, -1), cost, where=keep)
    np.testing.assert_allclose(actual, np.where(keep, losses.wkd(S, T, Y, cost), 0), rtol=1e-5)
    with pytest.raises(ValueError, match="cost must have shape"):
        losses.wkd(S, T, Y, cost[:4])
    for options, message in (({"regularizer": 0.0}, "regularizer"), ({"iterations": 0}, "at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            losses.wkd(S, T, Y, cost, **options)
    assert not jax.grad(lambda c: losses.wkd(S, T, Y, c).sum())(jnp.asarray(cost)).any()
    with pytest.raises(ValueError, match="mask of examples alone"):
        losses.wkd(S, T, Y, cost, where=jnp.ones((6, 5), bool))


def test_alpha_beta_meets_its_ends():
    for a, b, loss in ((1.0, 0.0, losses.kd), (0.0, 1.0, losses.reverse_kl)):
        actual = losses.alpha_beta(S, T, alpha=a, beta=b, temperature=1.0)
        np.testing.assert_allclose(actual, loss(S, T, temperature=1.0), rtol=1e-4)
    for a, b in ((-0.1, 0.5), (0.0, 0.0)):
        with pytest.raises(ValueError, match="at least 0"):
            losses.alpha_beta(S, T, alpha=a, beta=b)
