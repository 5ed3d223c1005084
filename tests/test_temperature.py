"""Temperature rules: invariants, bounds, masks, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, standardize, temperature

RULES = {
    "constant": temperature.constant,
    "max_logit": temperature.max_logit,
    "max_logit of teacher": functools.partial(temperature.max_logit, of="teacher"),
    "standard_deviation": temperature.standard_deviation,
    "standard_deviation of student": functools.partial(temperature.standard_deviation, of="student"),
    "max_ratio": temperature.max_ratio,
    "max_ratio of student": functools.partial(temperature.max_ratio, of="student"),
}
every = pytest.mark.parametrize("name", RULES)


def logits(shape=(16, 10), seed=0):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((2, *shape)).astype(np.float32)


@every
def test_shape_axis_and_leading_axes(name):
    s, t = logits()
    tau = RULES[name](s, t)
    assert tau.shape == (16, 1)
    assert np.all(tau > 0)
    np.testing.assert_array_equal(RULES[name](s.T, t.T, axis=0), tau.T)
    tokens = RULES[name](s.reshape(4, 4, 10), t.reshape(4, 4, 10))
    np.testing.assert_array_equal(tokens, tau.reshape(4, 4, 1))
    np.testing.assert_allclose(jax.jit(RULES[name])(s, t), tau, rtol=1e-6)


@every
def test_masked_classes_take_no_part(name):
    s, t = logits()
    wide_s, wide_t = (np.concatenate([a, np.full((16, 2), -np.inf, np.float32)], 1) for a in (s, t))
    mask = np.broadcast_to(np.arange(12) < 10, (16, 12))
    wide_s, wide_t = np.where(mask, wide_s, 99.0), np.where(mask, wide_t, 99.0)
    np.testing.assert_allclose(RULES[name](wide_s, wide_t, where=mask), RULES[name](s, t), rtol=1e-6)


@every
def test_positive_and_finite_for_any_logits(name):

    @jax.jit
    def run(s, t):
        tau, pullback = jax.vjp(lambda s: RULES[name](s, t), s)
        return tau, *pullback(jnp.ones_like(tau))

    for s, t in (
        (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)),
        (np.full((4, 4), -7.1, np.float32), np.full((4, 4), 0.1, np.float32)),
        (1e4 * np.eye(4, dtype=np.float32), -1e4 * np.eye(4, dtype=np.float32)),
    ):
        tau, gradient = run(s, t)
        assert np.all(tau > 0)
        assert np.all(np.isfinite(tau))
        assert np.all(np.isfinite(gradient))


def test_gradient_flows_only_where_the_source_lets_it():
    s, t = logits()
    flows = {
        name: bool(np.any(jax.jit(jax.grad(lambda s, rule=rule: jnp.sum(rule(s, t))))(s)))
        for name, rule in RULES.items()
    }
    assert {name for name, does in flows.items() if does} == {
        "standard_deviation of student",
        "max_ratio",
        "max_ratio of student",
    }


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_adaptive_temperature_keeps_its_bounds(num_classes):
    s, t = logits((200, num_classes))
    one_hot = np.eye(num_classes, dtype=np.float32)[:3]
    z_s, z_t = standardize(np.concatenate([s, one_hot])), standardize(np.concatenate([t, one_hot]))
    tau = temperature.max_logit(z_s, z_t)
    k, factor = num_classes, temperature.MAX_LOGIT_FACTOR
    assert np.all(tau >= factor * np.sqrt((k - 1) / k) * (1 - 1e-5))
    assert np.all(tau <= factor * (k - 1) / np.sqrt(k) * (1 + 1e-5))
    # A one-hot teacher reaches the upper bound.
    np.testing.assert_allclose(tau[-1], factor * (k - 1) / np.sqrt(k), rtol=1e-5)


def test_adaptive_temperature_flattens_every_softmax():
    s, t = (standardize(a) for a in logits((200, 100)))
    tau = temperature.max_logit(s, t)
    largest = jnp.maximum(jnp.abs(s), jnp.abs(t)).max(-1, keepdims=True) / tau
    np.testing.assert_allclose(largest, np.sqrt(3) - 1, rtol=1e-6)
    for x in (s, t):
        p = jax.nn.softmax(x / tau)
        assert np.max(p.max(-1) / p.min(-1)) <= np.exp(2 * (np.sqrt(3) - 1)) * (1 + 1e-5)
        assert p.max() <= 0.0419


def test_gradient_of_the_adaptive_loss_is_the_closed_form():
    """On z-scores T (q - p); on logits that, taken through the z-score."""
    with jax.enable_x64(True):
        s, t = (jnp.asarray(a, jnp.float64) for a in logits())
        adaptive = {"temperature": temperature.max_logit, "standardize": True}
        actual = jax.jit(jax.grad(lambda s: jnp.sum(losses.kd(s, t, **adaptive))))(s)

        @jax.jit
        def closed(s, t):
            z_s, z_t = standardize(s), standardize(t)
            tau = temperature.max_logit(z_s, z_t)
            g = tau * (jax.nn.softmax(z_s / tau) - jax.nn.softmax(z_t / tau))
            g = g - g.mean(-1, keepdims=True) - z_s * jnp.sum(z_s * g, -1, keepdims=True) / 9
            return g / s.std(-1, ddof=1, keepdims=True)

        np.testing.assert_allclose(actual, closed(s, t), rtol=1e-5, atol=1e-9)


def test_ratio_temperatures_add_up_to_twice_the_reference():
    s, t = (np.abs(a) for a in logits())
    both = sum(temperature.max_ratio(s, t, of=of, reference=3.0) for of in ("student", "teacher"))
    np.testing.assert_allclose(both, 6.0, rtol=1e-6)
    np.testing.assert_array_equal(temperature.max_ratio(-s, t, reference=3.0), 3.0)


def test_schedule_does_not_divide_by_zero():
    assert np.isfinite(temperature.scheduled(4.0, 0.1, -1.0, adjust=True))
    gradient = jax.grad(lambda d: temperature.scheduled(4.0, 0.1, d, adjust=True))(-1.5)
    assert gradient == 0
    assert temperature.scheduled(4.0, 0.5, -1.2, adjust=True) > temperature.scheduled(4.0, 0.5, 0.2)


def test_rules_are_refused_integers():
    for rule in RULES.values():
        with pytest.raises(TypeError, match="floating-point"):
            rule(np.ones((2, 3), np.int32), np.ones((2, 3), np.float32))


@every
def test_logits_that_are_not_a_number_have_no_temperature(name):
    if name == "constant":
        return
    s, t = logits((1, 5))
    s[0, 2] = t[0, 2] = np.nan
    assert np.isnan(RULES[name](s, t)[0, 0])


@pytest.mark.parametrize("rule", [temperature.linear_decay, temperature.cosine_decay])
def test_decays_take_epochs_of_any_integer_type(rule):
    for dtype in (np.uint8, np.int8, np.uint16, np.uint32):
        for epoch in (dtype(5), jnp.asarray(5, dtype)):
            np.testing.assert_allclose(rule(epoch), rule(5), rtol=1e-6)
            np.testing.assert_allclose(rule(epoch, epochs=300), rule(5, epochs=300), rtol=1e-6)
