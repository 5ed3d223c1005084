"""What holds for every loss, driven by one table: see `table.py`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from loss_table import PER_EXAMPLE, ROWS, STRUCTURAL

from jaxkd import losses, standardize, temperature

B, K = 8, 6
every = pytest.mark.parametrize("name", ROWS)
every_loss = pytest.mark.parametrize("name", STRUCTURAL)


def data(shape=(B, K), seed=0, dtype=np.float32):
    """Student and teacher logits, correlated as after some training, and labels."""
    rng = np.random.default_rng(seed)
    teacher = 3 * rng.standard_normal(shape)
    student = 0.6 * teacher + 1.5 * rng.standard_normal(shape)
    labels = rng.integers(0, shape[-1], shape[:-1])
    return student.astype(dtype), teacher.astype(dtype), labels.astype(np.int32)


def total(name, s, t, y, **options):
    return jnp.sum(ROWS[name].call(s, t, y, **options))


# Compiling is what takes the time here, and these programs are tiny.
QUICK = {"xla_backend_optimization_level": 0}
TRACED = []


@functools.cache
def compiled(name):
    """Values and the gradient of their sum, jitted; properties on the same shape share the compilation."""

    def run(s, t, y):
        TRACED.append(name)
        values, pullback = jax.vjp(lambda s: ROWS[name].call(s, t, y), s)
        return values, pullback(jnp.ones_like(values))[0]

    return jax.jit(run, compiler_options=QUICK)


@functools.cache
def with_mask(name):
    def run(s, t, y, where):
        values, pullback = jax.vjp(lambda s: ROWS[name].call(s, t, y, where=where), s)
        return values, pullback(jnp.ones_like(values))[0]

    return jax.jit(run, compiler_options=QUICK)


def assert_finite(*arrays):
    for array in arrays:
        assert np.all(np.isfinite(np.asarray(array, np.float32))), array


def test_the_table_has_a_row_for_every_loss():
    called = {name.split(" ")[0].rstrip(",") for name in ROWS}
    assert called == set(losses.__all__) - {"kd_from_hidden"}


@every
def test_numpy_formula(name):
    for seed, shape in ((1, (64, 100)), (2, (4, 1000))):
        s, t, y = data(shape, seed)
        expected = ROWS[name].reference(s.astype(np.float64), t.astype(np.float64), y)
        actual = ROWS[name].call(s, t, y)
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())
        with jax.enable_x64(True):
            actual = ROWS[name].call(jnp.asarray(s, jnp.float64), jnp.asarray(t, jnp.float64), y)
            assert actual.dtype == jnp.float64
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@every_loss
def test_jit_equals_eager_and_the_shape_is_right(name):
    s, t, y = data()
    values, _ = compiled(name)(s, t, y)
    assert values.shape == ((B,) if ROWS[name].per_example else ())
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, ROWS[name].call(s, t, y), rtol=2e-4, atol=1e-5)


@every_loss
def test_vmap_equals_batch(name):
    s, t, y = data()
    if ROWS[name].per_example:
        expected, _ = compiled(name)(s, t, y)
        actual = jax.vmap(ROWS[name].call)(s, t, y)
    else:
        t2 = t[::-1]
        expected = jnp.stack([compiled(name)(s, t, y)[0], compiled(name)(s, t2, y)[0]])
        actual = jax.vmap(ROWS[name].call, in_axes=(None, 0, None))(s, np.stack([t, t2]), y)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)


@every_loss
def test_leading_axes_are_examples(name):
    s, t, y = data()
    expected, _ = compiled(name)(s, t, y)
    actual = ROWS[name].call(s.reshape(2, 4, K), t.reshape(2, 4, K), y.reshape(2, 4))
    np.testing.assert_allclose(jnp.ravel(actual), jnp.ravel(expected), rtol=2e-4, atol=1e-5)


@every
def test_gradient_equals_finite_differences(name):
    with jax.enable_x64(True):
        s, t, y = data(dtype=np.float64)
        options = {}
        if ROWS[name].detached:
            fixed = temperature.max_logit(standardize(s), standardize(t))
            options["temperature"] = jnp.broadcast_to(fixed, (B, 1))
        run = compiled(name)
        _, gradient = run(s, t, y)
        if options:

            @functools.partial(jax.jit, compiler_options=QUICK)
            def value(s):
                return total(name, s, t, y, **options)
        else:

            def value(s):
                return jnp.sum(run(s, t, y)[0])

        step = 1e-5
        for direction in np.random.default_rng(3).standard_normal((3, B, K)):
            slope = (value(s + step * direction) - value(s - step * direction)) / (2 * step)
            np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6, atol=1e-8)


@every
def test_masked_examples_equal_sliced(name):
    s, t, y = data((B + 2, K))
    keep = np.array([True, False, True, True, True, True, False, True, True, True])
    poisoned_s, poisoned_t, poisoned_y = s.copy(), t.copy(), y.copy()
    poisoned_s[~keep], poisoned_t[~keep], poisoned_y[~keep] = -np.inf, np.nan, -100
    values, gradient = with_mask(name)(poisoned_s, poisoned_t, poisoned_y, keep)
    expected, expected_gradient = compiled(name)(s[keep], t[keep], y[keep])
    if ROWS[name].per_example:
        np.testing.assert_array_equal(values[~keep], 0)
        values = values[keep]
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[keep], expected_gradient, rtol=2e-3, atol=2e-5)
    np.testing.assert_array_equal(gradient[~keep], 0)


@every
def test_masked_classes_equal_sliced(name):
    s, t, y = data((B, K + 2))
    y = y % K
    poisoned_s, poisoned_t = s.copy(), t.copy()
    poisoned_s[:, K:], poisoned_t[:, K:] = -np.inf, -np.inf
    mask = np.broadcast_to(np.arange(K + 2) < K, s.shape)
    values, gradient = with_mask(name)(poisoned_s, poisoned_t, y, mask)
    expected, expected_gradient = compiled(name)(s[:, :K], t[:, :K], y)
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[:, :K], expected_gradient, rtol=2e-3, atol=2e-5)
    np.testing.assert_array_equal(gradient[:, K:], 0)


@every_loss
def test_nothing_left_is_zero(name):
    s, t, y = data((B, K + 2))
    values, gradient = with_mask(name)(s, t, y, np.zeros(s.shape, bool))
    np.testing.assert_array_equal(values, np.zeros_like(values))
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@every_loss
def test_axis_equals_moveaxis(name):
    s, t, y = data()
    expected, _ = compiled(name)(s, t, y)
    for axis in (0, -2):
        actual = ROWS[name].call(s.T, t.T, y, axis=axis)
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.shift])
def test_shift_invariance(name):
    s, t, y = data()
    offset = np.linspace(-3, 3, B, dtype=np.float32)[:, None]
    expected, _ = compiled(name)(s, t, y)
    actual, gradient = compiled(name)(s + offset, t - 2 * offset, y)
    if "mlkd" not in name and "correlation" not in name:
        # The loss does not change along the constant direction: the gradient is orthogonal to it.
        np.testing.assert_allclose(gradient.sum(-1), 0, atol=2e-4)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.scale])
def test_scale_invariance(name):
    s, t, y = data()
    factor = np.linspace(0.5, 3, B, dtype=np.float32)[:, None]
    expected, _ = compiled(name)(s, t, y)
    actual, gradient = compiled(name)(factor * s, t / factor, y)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)
    if ROWS[name].per_example:
        np.testing.assert_allclose(np.sum(gradient * s, -1), 0, atol=2e-4)


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.zero])
def test_zero_at_equality(name):
    s, _, y = data()
    values, gradient = compiled(name)(s, s, y)
    tolerance = {"exact": 0.0, "close": 2e-5}[ROWS[name].zero]
    np.testing.assert_allclose(values, 0, atol=tolerance)
    np.testing.assert_allclose(gradient, 0, atol=2e-5)


@every
def test_finite_at_extremes(name):
    s, t, y = data()
    flat = np.full_like(s, 0.1)
    constant = 7 * flat
    one_hot = np.eye(K, dtype=np.float32)[y]
    for student, teacher in (
        (1e4 * np.sign(s), 1e4 * np.sign(t)),
        (1e4 * one_hot, -1e4 * one_hot),
        (-1e4 * one_hot, 1e4 * one_hot),
        (1e4 * np.sign(s), 1e4 * np.sign(s)),
        (constant, t),
        (s, constant),
        (constant, flat),
        (np.zeros_like(s), np.zeros_like(s)),
        (1e-6 * s, 1e4 * t),
    ):
        assert_finite(*compiled(name)(student, teacher, y))
        assert_finite(*compiled(name)(jnp.bfloat16(student), jnp.bfloat16(teacher), y))


@every_loss
def test_two_classes(name):
    s, t, y = data((B, 2))
    assert_finite(*compiled(name)(s, t, y))
    assert_finite(*compiled(name)(1e4 * np.sign(s), -1e4 * np.sign(s), y))


@every
def test_bfloat16_is_computed_in_float32(name):
    s, t, y = data()
    s, t = jnp.bfloat16(s), jnp.bfloat16(t)
    values, gradient = compiled(name)(s, t, y)
    expected, expected_gradient = compiled(name)(s.astype(jnp.float32), t.astype(jnp.float32), y)
    assert values.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    # MLKD's second view is scaled in bfloat16 by the table, before the loss sees it.
    np.testing.assert_allclose(values, expected, rtol=2e-2 if "mlkd" in name else 2e-4, atol=1e-5)
    scale = np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, rtol=2e-2, atol=2e-2 * scale)


@every_loss
def test_pmap_and_shard_map(name):
    devices = jax.device_count()
    assert devices == 8
    s, t, y = data((devices * B, K))
    pieces = [a.reshape(devices, B, *a.shape[1:]) for a in (s, t, y)]
    run = compiled(name)
    expected, expected_gradient = map(
        np.stack, zip(*(run(*piece) for piece in zip(*pieces, strict=True)), strict=True)
    )
    run = run.__wrapped__
    values, gradient = jax.pmap(run)(*pieces)
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-3, atol=2e-5)

    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))

    def on_shard(s, t, y):
        values, gradient = run(s, t, y)
        return jnp.atleast_1d(values), gradient

    sharded = jax.jit(jax.shard_map(on_shard, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    values, gradient = sharded(s, t, y)
    np.testing.assert_allclose(values, np.ravel(expected), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient.reshape(s.shape), rtol=2e-3, atol=2e-5)


@every_loss
def test_one_trace_for_many_calls(name):
    first, _ = compiled(name)(*data())
    traces = len(TRACED)
    second, _ = compiled(name)(*data(seed=1))
    third, _ = compiled(name)(*data(seed=2))
    assert len(TRACED) == traces
    assert traces > 0
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


@every_loss
def test_the_teacher_gets_no_gradient(name):
    s, t, y = data()
    gradient = jax.grad(total, argnums=2)(name, s, t, y)
    np.testing.assert_array_equal(gradient, np.zeros_like(t))


@every
def test_strict_promotion(name):
    s, t, y = data()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        shape = jax.eval_shape(jax.grad(functools.partial(total, name)), s, t, y)
        jax.eval_shape(functools.partial(total, name, where=np.ones((B, K), bool)), s, t, y)
        jax.eval_shape(functools.partial(total, name, where=np.ones(B, bool)), s, t, y)
    assert shape.shape == s.shape


@every_loss
def test_ensembles(name):
    s, t, y = data()
    other = t[::-1]
    alone, _ = compiled(name)(s, t, y)
    same = ROWS[name].call(s, np.stack([t, t, t]), y)
    np.testing.assert_allclose(same, alone, rtol=2e-4, atol=1e-5)
    of_mean, _ = compiled(name)(s, (t + other) / 2, y)
    options = {"ensemble": "logits"} if ROWS[name].ensemble else {}
    both = ROWS[name].call(s, np.stack([t, other]), y, **options)
    np.testing.assert_allclose(both, of_mean, rtol=2e-4, atol=1e-5)
    if ROWS[name].ensemble:
        in_probabilities = ROWS[name].call(s, np.stack([t, other]), y)
        assert_finite(in_probabilities)
        assert not np.allclose(in_probabilities, of_mean, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in PER_EXAMPLE if ROWS[n].zero and not ROWS[n].variant])
def test_not_negative(name):
    s, t, y = data((500, K), seed=5)
    assert ROWS[name].call(s, s + 0.01 * t, y).min() >= -2e-5


def test_every_loss_has_the_common_options():
    for name in losses.__all__:
        options = inspect.signature(getattr(losses, name)).parameters
        if name != "kd_from_hidden":
            assert {"axis", "where"} <= set(options), name
