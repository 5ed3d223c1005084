"""What holds for every loss, driven by one table: see `loss_table.py`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_table import ADAPTIVE, OF_LOGITS, PER_EXAMPLE, ROWS, STRUCTURAL

from jaxkd import losses, standardize, temperature

B, K = 8, 6
every = pytest.mark.parametrize("name", ROWS)
every_loss = pytest.mark.parametrize("name", STRUCTURAL)
# For what takes a program of its own: other numbers through the same code are a slow test.
every_once = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if row.variant else ()) for name, row in ROWS.items()]
)


def data(shape=(B, K), seed=0, dtype=np.float32):
    """Student and teacher logits, correlated as after some training, and labels."""
    rng = np.random.default_rng(seed)
    teacher = 3 * rng.standard_normal(shape)
    student = 0.6 * teacher + 1.5 * rng.standard_normal(shape)
    labels = rng.integers(0, shape[-1], shape[:-1])
    return student.astype(dtype), teacher.astype(dtype), labels.astype(np.int32)


def total(name, s, t, y, **options):
    return jnp.sum(ROWS[name].call(s, t, y, **options))


# Compiling is what takes the time here: a property asks for a shape that others use, where it can.
QUICK = {"xla_backend_optimization_level": 0}
TRACED = []


def values_and_gradients(name, s, t, y, **options):
    """Values, and the gradients of their sum by the student's and by the teacher's logits."""
    TRACED.append(name)
    values, pullback = jax.vjp(lambda s, t: ROWS[name].call(s, t, y, **options), s, t)
    return values, *pullback(jnp.ones_like(values))


@functools.cache
def compiled(name):
    return jax.jit(functools.partial(values_and_gradients, name), compiler_options=QUICK)


@functools.cache
def with_mask(name):
    run = functools.partial(values_and_gradients, name)
    return jax.jit(lambda s, t, y, where: run(s, t, y, where=where), compiler_options=QUICK)


def assert_finite(*arrays):
    for array in arrays:
        assert np.all(np.isfinite(np.asarray(array, np.float32))), array


def test_the_table_has_a_row_for_every_loss():
    called = {name.split(" ")[0].rstrip(",") for name in ROWS}
    assert called == OF_LOGITS


@functools.cache
def values_of_all(shape, seed, precision):
    """Values of all rows, from one compilation, and the inputs in float64."""
    s, t, y = data(shape, seed)
    with jax.enable_x64(precision == "float64"):
        run = jax.jit(
            lambda s, t, y: {name: row.call(s, t, y) for name, row in ROWS.items()}, compiler_options=QUICK
        )
        values = jax.device_get(run(s.astype(precision), t.astype(precision), y))
    return values, (s.astype(np.float64), t.astype(np.float64), y)


@every
def test_numpy_formula(name):
    """In the precision that is harder for the size: rounding grows with the classes."""
    for shape, precision, rtol, atol in (
        ((4, 1000), "float32", 2e-4, 2e-5),
        ((64, 100), "float64", 1e-9, 1e-12),
    ):
        values, inputs = values_of_all(shape, 1, precision)
        expected = ROWS[name].reference(*inputs)
        assert values[name].dtype == precision
        scale = np.abs(expected).max() if precision == "float32" else 1
        np.testing.assert_allclose(values[name], expected, rtol=rtol, atol=atol * scale)
    s, t, y = data()
    expected = ROWS[name].reference(s.astype(np.float64), t.astype(np.float64), y)
    values = compiled(name)(s, t, y)[0]
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


@every_loss
def test_jit_equals_eager_and_the_shape_is_right(name):
    s, t, y = data()
    values, *_ = compiled(name)(s, t, y)
    assert values.shape == ((B,) if ROWS[name].per_example else ())
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, ROWS[name].call(s, t, y), rtol=2e-4, atol=1e-5)


@every_loss
def test_vmap_equals_batch(name):
    s, t, y = data()
    if ROWS[name].per_example:
        expected, *_ = compiled(name)(s, t, y)
        actual = jax.jit(jax.vmap(ROWS[name].call), compiler_options=QUICK)(s, t, y)
    else:
        t2 = t[::-1]
        expected = jnp.stack([compiled(name)(s, t, y)[0], compiled(name)(s, t2, y)[0]])
        run = jax.vmap(ROWS[name].call, in_axes=(None, 0, None))
        actual = jax.jit(run, compiler_options=QUICK)(s, np.stack([t, t2]), y)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)


@every_loss
def test_leading_axes_are_examples(name):
    s, t, y = data()
    expected, *_ = compiled(name)(s, t, y)
    run = jax.jit(ROWS[name].call, compiler_options=QUICK)
    actual = run(s.reshape(2, 4, K), t.reshape(2, 4, K), y.reshape(2, 4))
    np.testing.assert_allclose(jnp.ravel(actual), jnp.ravel(expected), rtol=2e-4, atol=1e-5)


@every_once
def test_gradient_equals_finite_differences(name):
    with jax.enable_x64(True):
        s, t, y = data(dtype=np.float64)
        options = {}
        if ROWS[name].detached:
            fixed = temperature.max_logit(standardize(s), standardize(t))
            options["temperature"] = jnp.broadcast_to(fixed, (B, 1))
        run = compiled(name)
        _, gradient, _ = run(s, t, y)
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


@every_once
def test_masked_examples_and_classes_equal_sliced(name):
    """Examples, classes, and both at once; what is masked may hold anything."""
    s, t, y = data((B + 2, K + 2))
    y = y % K
    examples = np.array([True, False, True, True, True, True, False, True, True, True])
    classes = np.arange(K + 2) < K
    poisoned_s, poisoned_t, poisoned_y = s.copy(), t.copy(), y.copy()
    poisoned_s[:, ~classes], poisoned_t[:, ~classes] = -np.inf, -np.inf
    poisoned_s[~examples], poisoned_t[~examples], poisoned_y[~examples] = -np.inf, np.nan, -100
    kept = np.ix_(examples, classes)
    values, gradient, _ = with_mask(name)(poisoned_s, poisoned_t, poisoned_y, examples[:, None] & classes)
    expected, expected_gradient, _ = compiled(name)(s[kept], t[kept], y[examples])
    if ROWS[name].per_example:
        np.testing.assert_array_equal(values[~examples], 0)
        values = values[examples]
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[kept], expected_gradient, rtol=2e-3, atol=2e-5)
    np.testing.assert_array_equal(gradient[~examples], 0)
    np.testing.assert_array_equal(gradient[:, ~classes], 0)


@every
def test_a_mask_of_examples_is_that_of_all_their_classes(name):
    s, t, y = data()
    keep = np.arange(B) % 3 > 0
    wide = np.broadcast_to(keep[:, None], s.shape)
    of_examples, of_all = (ROWS[name].call(s, t, y, where=where) for where in (keep, wide))
    np.testing.assert_allclose(of_examples, of_all, rtol=1e-5, atol=1e-5)


@every
def test_masks_of_integers_and_weights(name):
    s, t, y = data()
    keep = np.arange(B) % 3 > 0
    expected = ROWS[name].call(s, t, y, where=keep)
    # Any integer that is not 0 counts, such as the number of a segment.
    np.testing.assert_array_equal(ROWS[name].call(s, t, y, where=(keep * 2).astype(np.uint8)), expected)
    weights = np.linspace(0.5, 2, B, dtype=np.float32) * keep
    if not ROWS[name].per_example:
        with pytest.raises(TypeError, match=r"where=\(weights != 0\)"):
            ROWS[name].call(s, t, y, where=weights)
        return
    s[~keep] = np.nan
    values, gradient = jax.value_and_grad(lambda s: ROWS[name].call(s, t, y, where=weights).sum())(s)
    np.testing.assert_allclose(values, np.sum(weights * expected), rtol=1e-5)
    assert_finite(gradient)


def test_a_vector_masks_the_classes_of_tokens():
    s, t, _ = data((2, 3, K))
    classes, tokens = np.arange(K) < 4, np.array([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(losses.kd(s, t, where=classes), losses.kd(s, t, where=classes[None, None]))
    np.testing.assert_allclose(losses.kd(s, t, where=classes), losses.kd(s[..., :4], t[..., :4]), rtol=1e-5)
    np.testing.assert_array_equal(losses.kd(s, t, where=tokens) == 0, tokens == 0)
    moved = [np.moveaxis(x, -1, 1) for x in (s, t)]
    np.testing.assert_allclose(losses.kd(*moved, axis=1, where=classes), losses.kd(s, t, where=classes))
    with pytest.raises(ValueError, match="or be a vector of the classes"):
        losses.kd(s, t, where=classes[:3])


@pytest.mark.parametrize("name", ["dkd", "normdkd", "rld adaptive"])
def test_labels_that_are_ignored_and_labels_that_are_wrong(name):
    s, t, y = data()
    run = jax.jit(
        lambda s, y, where: jax.value_and_grad(
            lambda s: (lambda v: (v.sum(), v))(
                ROWS[name].call(s, t, y, where=where, ignore_index=-100)
            ), has_aux=True
        )(s),
        compiler_options=QUICK,
    )  # fmt: skip
    keep, everything = np.arange(B) % 3 > 0, np.ones(B, bool)
    expected = ROWS[name].call(s, t, y)
    padded = s.copy()
    padded[~keep] = np.nan
    (_, values), gradient = run(padded, np.where(keep, y, -100), everything)
    np.testing.assert_allclose(values, np.where(keep, expected, 0), rtol=1e-4)
    np.testing.assert_array_equal(gradient[~keep], 0)
    # Under jit a wrong label is NaN, value and gradient, unless the example is masked.
    (_, values), gradient = run(s, np.where(keep, y, K), everything)
    np.testing.assert_array_equal(np.isnan(values), ~keep)
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), ~keep)
    (_, values), gradient = run(s, np.where(keep, y, K), keep)
    assert_finite(values, gradient)


def test_cross_entropy():
    s, _, y = data((3, 4, K))
    log_q = np.log(np.exp(s) / np.exp(s).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_q, y[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.cross_entropy(s, y), expected, rtol=1e-5)
    ignored = np.where(y == 2, -100, y)
    value, gradient = jax.value_and_grad(lambda s: losses.cross_entropy(s, ignored, ignore_index=-100).sum())(
        np.where(y[..., None] == 2, np.nan, s)
    )
    np.testing.assert_allclose(value, expected[y != 2].sum(), rtol=1e-5)
    assert_finite(gradient)
    known = losses.cross_entropy(s, y % 4, where=np.arange(K) < 4)
    np.testing.assert_allclose(known, losses.cross_entropy(s[..., :4], y % 4), rtol=1e-5)
    assert np.isposinf(losses.cross_entropy(s, np.full_like(y, 5), where=np.arange(K) < 4)).all()


@pytest.mark.parametrize("wrong", [-1.0, 0.0, np.inf, np.nan])
def test_under_jit_a_temperature_that_is_not_positive_gives_nan(wrong):
    s, t, _ = data()
    given = jax.jit(lambda tau: losses.kd(s, t, temperature=tau))
    ruled = jax.jit(lambda tau: losses.kd(s, t, temperature=lambda s, t: tau))
    exponent = jax.jit(lambda tau: losses.ttm(s, t, exponent=tau))
    for loss in (given, ruled, exponent):
        assert np.isnan(loss(wrong)).all()
        assert_finite(loss(2.0))


@every_loss
def test_nothing_left_is_zero(name):
    s, t, y = data((B + 2, K + 2))
    values, gradient, _ = with_mask(name)(s, t, y, np.zeros(s.shape, bool))
    np.testing.assert_array_equal(values, np.zeros_like(values))
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@every_loss
def test_axis_equals_moveaxis(name):
    s, t, y = data()
    expected, *_ = compiled(name)(s, t, y)
    for axis in (0, -2):
        actual = ROWS[name].call(s.T, t.T, y, axis=axis)
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.shift])
def test_shift_invariance(name):
    s, t, y = data()
    offset = np.linspace(-3, 3, B, dtype=np.float32)[:, None]
    expected, *_ = compiled(name)(s, t, y)
    actual, gradient, _ = compiled(name)(s + offset, t - 2 * offset, y)
    if "mlkd" not in name and "correlation" not in name:
        # The loss does not change along the constant direction: the gradient is orthogonal to it.
        np.testing.assert_allclose(gradient.sum(-1), 0, atol=2e-4)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.scale])
def test_scale_invariance(name):
    s, t, y = data()
    factor = np.linspace(0.5, 3, B, dtype=np.float32)[:, None]
    expected, *_ = compiled(name)(s, t, y)
    actual, gradient, _ = compiled(name)(factor * s, t / factor, y)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)
    if ROWS[name].per_example:
        np.testing.assert_allclose(np.sum(gradient * s, -1), 0, atol=2e-4)


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-3])
def test_small_divergences_are_exact(noise):
    """Students that differ little from the teacher: no sum of large terms that cancel."""
    rng = np.random.default_rng(0)
    teacher = (3 * rng.standard_normal((8, 4000))).astype(np.float32)
    student = (0.6 * teacher + noise * rng.standard_normal(teacher.shape)).astype(np.float32)
    adaptive = jax.jit(functools.partial(losses.kd, **ADAPTIVE))
    value = adaptive(student, teacher)
    with jax.enable_x64(True):
        exact = np.asarray(adaptive(student.astype(float), teacher.astype(float)))
    np.testing.assert_allclose(value, exact, rtol=0, atol=1e-6)
    assert (np.asarray(value) > 0).all()


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.zero])
def test_zero_at_equality(name):
    s, _, y = data()
    values, gradient, _ = compiled(name)(s, s, y)
    row = ROWS[name]
    # Z-scores of equal logits may be computed twice, and rounded differently, as the compiler sees fit.
    tolerance = 0.0 if row.zero == "exact" and not row.scale else 2e-5
    np.testing.assert_allclose(values, 0, atol=tolerance)
    np.testing.assert_allclose(gradient, 0, atol=2e-5)


def extremes():
    s, t, y = data()
    flat = np.full_like(s, 0.1)
    constant = 7 * flat
    one_hot = np.eye(K, dtype=np.float32)[y]
    pairs = (
        (1e4 * np.sign(s), 1e4 * np.sign(t)),
        (1e4 * one_hot, -1e4 * one_hot),
        (-1e4 * one_hot, 1e4 * one_hot),
        (1e4 * np.sign(s), 1e4 * np.sign(s)),
        (constant, t),
        (s, constant),
        (constant, flat),
        (np.zeros_like(s), np.zeros_like(s)),
        (1e-6 * s, 1e4 * t),
    )
    return [(student, teacher, y) for student, teacher in pairs]


@every
def test_finite_at_extremes(name):
    for student, teacher, y in extremes():
        assert_finite(*compiled(name)(student, teacher, y))


@every_once
def test_finite_at_extremes_in_bfloat16(name):
    for student, teacher, y in extremes():
        assert_finite(*compiled(name)(jnp.bfloat16(student), jnp.bfloat16(teacher), y))


def test_a_head_that_starts_at_zero_moves_without_z_scores_only():
    """As docs/own_loop.md says."""
    _, t, y = data()
    moved = {name for name in ROWS if np.any(compiled(name)(np.zeros_like(t), t, y)[1] != 0)}
    assert {"kd", "reverse_kl", "normkd", "dtkd", "ttm", "mse", "dkd", "normdkd", "mlkd"} <= moved
    still = {"kd standardised", "kd adaptive", "dkd adaptive", "correlation", "dist", "dist adaptive"}
    assert not still & moved


@functools.cache
def of_two_classes():
    """Values and gradients of all losses at ordinary and at extreme logits, from one compilation."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(s, t, y):
        return {name: values_and_gradients(name, s, t, y) for name in STRUCTURAL}

    s, t, y = data((B, 2))
    return jax.device_get([run(s, t, y), run(1e4 * np.sign(s), -1e4 * np.sign(s), y)])


@every_loss
def test_two_classes(name):
    for results in of_two_classes():
        assert_finite(*results[name])


@every_once
def test_bfloat16_is_computed_in_float32(name):
    s, t, y = data()
    s, t = jnp.bfloat16(s), jnp.bfloat16(t)
    values, gradient, _ = compiled(name)(s, t, y)
    expected, expected_gradient, _ = compiled(name)(s.astype(jnp.float32), t.astype(jnp.float32), y)
    assert values.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    # MLKD's second view is scaled in bfloat16 by the table, before the loss sees it.
    np.testing.assert_allclose(values, expected, rtol=2e-2 if "mlkd" in name else 2e-4, atol=1e-5)
    scale = np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, rtol=2e-2, atol=2e-2 * scale)


@every_loss
def test_one_trace_for_many_calls(name):
    first, *_ = compiled(name)(*data())
    traces = len(TRACED)
    second, *_ = compiled(name)(*data(seed=1))
    third, *_ = compiled(name)(*data(seed=2))
    assert len(TRACED) == traces
    assert traces > 0
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


@every_loss
def test_the_teacher_gets_no_gradient(name):
    s, t, y = data()
    *_, gradient = compiled(name)(s, t, y)
    np.testing.assert_array_equal(gradient, np.zeros_like(t))


@every
def test_strict_promotion(name):
    s, t, y = data()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        shape = jax.eval_shape(jax.grad(functools.partial(total, name)), s, t, y)
        jax.eval_shape(functools.partial(total, name, where=np.ones((B, K), bool)), s, t, y)
        jax.eval_shape(functools.partial(total, name, where=np.ones(B, bool)), s, t, y)
    assert shape.shape == s.shape


@every
def test_non_finite_logits_give_a_non_finite_loss(name):
    s, t, y = data()
    for entry in ((0, y[0]), (0, (y[0] + 1) % K)):
        for bad in (np.nan, np.inf, -np.inf):
            for poisoned in ("student", "teacher"):
                if poisoned == "teacher" and bad == -np.inf:
                    continue  # a class that the teacher excludes: see the next test
                student, teacher = s.copy(), t.copy()
                (student if poisoned == "student" else teacher)[entry] = bad
                values, *_ = compiled(name)(student, teacher, y)
                first = values[0] if ROWS[name].per_example else values
                assert not np.isfinite(first), (entry, bad, poisoned)
                if ROWS[name].per_example:
                    assert_finite(values[1:])


@pytest.mark.parametrize(
    "rule", [temperature.max_logit, temperature.max_ratio, temperature.standard_deviation]
)
def test_non_finite_logits_blame_no_temperature(rule):
    """Outside of `jit` too: they have no temperature, and so no loss."""
    s, t, _ = data()
    s[1, 2] = np.nan
    values = losses.kd(s, t, temperature=rule)
    np.testing.assert_array_equal(np.isnan(values), np.arange(B) == 1)
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        losses.kd(s, t, temperature=lambda s, t: jnp.full((B, 1), -1.0))


@pytest.mark.parametrize("standardize_", [np.True_, 1, np.array(True)])
def test_any_truth_of_mlkds_standardisation_is_true(standardize_):
    s, t, _ = data()
    expected, other = (losses.mlkd(s, t, s / 2, t / 2, standardize=one) for one in (True, "kd"))
    actual = losses.mlkd(s, t, s / 2, t / 2, standardize=standardize_)
    np.testing.assert_array_equal(actual, expected)
    assert actual != other
    with pytest.raises(ValueError, match="standardize must be True or False, got 'no'"):
        losses.kd(s, t, standardize="no")


@every
def test_a_class_that_the_teacher_excludes(name):
    s, t, y = data()
    for entry in ((0, y[0]), (0, (y[0] + 1) % K)):
        student, teacher = s.copy(), t.copy()
        teacher[entry] = -np.inf
        if not ROWS[name].excludes:
            assert not np.all(np.isfinite(compiled(name)(student, teacher, y)[0]))
            continue
        actual = compiled(name)(student, teacher, y)
        assert_finite(*actual)
        if not name.startswith("norm"):  # whose temperature would be that of the large logit
            finite = teacher.copy()
            finite[entry] = -1e4
            expected = compiled(name)(student, finite, y)
            np.testing.assert_allclose(actual[0], expected[0], rtol=2e-4)
            np.testing.assert_allclose(actual[1], expected[1], rtol=2e-3, atol=2e-5)
        if "norm" not in name:  # the student's temperature would not be finite
            student[entry] = -np.inf
            assert_finite(*compiled(name)(student, teacher, y))


def test_a_class_that_both_exclude_adds_nothing_to_reverse_kl():
    s, t, _ = data()
    wide_s, wide_t = (np.pad(a, ((0, 0), (0, 1)), constant_values=-np.inf) for a in (s, t))
    for loss in (losses.reverse_kl, losses.kd, losses.jensen_shannon):
        value, gradient = jax.value_and_grad(lambda s, loss=loss: loss(s, wide_t).sum())(wide_s)
        np.testing.assert_allclose(value, loss(s, t).sum(), rtol=1e-5)
        assert_finite(gradient)


@every
def test_gradient_is_finite_where_the_value_is(name):
    s, t, y = data()
    s, t = s / np.abs(s).max(), t / np.abs(t).max()
    for large in (1e6, 1e12, 1e15, 1e18):
        for student, teacher in (
            (large * s, large * t),
            (large * s, t),
            (s, large * t),
            (large * s, -large * s),
            (large * np.abs(s), large * np.abs(t)),
        ):
            value, gradient, _ = compiled(name)(np.float32(student), np.float32(teacher), y)
            finite = np.isfinite(value)
            if ROWS[name].per_example:
                assert_finite(gradient[finite])
            elif finite:
                assert_finite(gradient)


WITH_TEMPERATURE = [
    loss for loss in sorted(OF_LOGITS) if "temperature" in inspect.signature(getattr(losses, loss)).parameters
]


@pytest.mark.parametrize("loss", WITH_TEMPERATURE)
def test_the_gradient_of_a_temperature_is_finite_where_nothing_counts(loss):
    """Masked examples, examples without a class, and constant logits: they add nothing."""
    s, t, y = data((4, K))
    s[2], t[3] = 0.0, 1.0
    named = ROWS[next(name for name in ROWS if name == loss or name.startswith(f"{loss} "))]
    known = inspect.signature(getattr(losses, loss)).parameters
    examples, classes = np.array([True, False, True, True]), np.ones((4, K), bool)
    classes[1] = False

    def summed(temperature):
        results = [
            jnp.sum(named.call(s, t, y, temperature=temperature, where=where, **standardize))
            for where in (examples, classes)
            for standardize in ([{}, {"standardize": True}] if "standardize" in known else [{}])
        ]
        return jnp.stack(results)

    assert_finite(jax.jit(jax.jacobian(summed), compiler_options=QUICK)(2.0))


@pytest.mark.parametrize("name", [n for n in PER_EXAMPLE if ROWS[n].zero and not ROWS[n].variant])
def test_not_negative(name):
    for seed in range(60):
        s, t, y = data(seed=seed)
        assert compiled(name)(s, s + 0.01 * t, y)[0].min() >= -2e-5


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_z_scores_of_large_logits(num_classes):
    s, t, _ = data((B, num_classes))
    for large in (1e10, 1e18):
        np.testing.assert_allclose(standardize(np.float32(large) * s), standardize(s), rtol=2e-3, atol=1e-5)
        actual = losses.kd(np.float32(large) * s, np.float32(large) * t, **ADAPTIVE)
        np.testing.assert_allclose(actual, losses.kd(s, t, **ADAPTIVE), rtol=2e-3)


@pytest.mark.parametrize(
    ("loss", "num_classes", "dtypes"),
    [
        (losses.dkd, 300, "int8 uint8 int16 uint16 uint32 int64 uint64 >i4 >u2"),
        (losses.dkd, 70_000, "uint8 uint16"),
        (losses.normdkd, 128, "int8 uint8"),
        pytest.param(losses.dkd, 128, "int8 uint8", marks=pytest.mark.slow),
        pytest.param(
            losses.normdkd, 300, "int8 uint8 int16 uint16 uint32 int64 uint64 >i4 >u2", marks=pytest.mark.slow
        ),
        pytest.param(losses.normdkd, 70_000, "uint8 uint16", marks=pytest.mark.slow),
    ],
)
def test_labels_of_any_integer_type(loss, num_classes, dtypes):
    s, t, _ = data((2, num_classes))
    types = [np.dtype(name) for name in dtypes.split()]
    # In range for each type: NumPy's, known as in an eager call, and the same as traced arrays.
    known = [np.array([3, min(num_classes - 1, np.iinfo(dtype).max)]).astype(dtype) for dtype in types]
    traced = [y for y in known if y.dtype.isnative]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(traced, exact):
        return [[loss(s, t, y) for y in labels] for labels in (known, traced, exact)]

    of_known, of_traced, expected = run(traced, [y.astype(np.int32) for y in known])
    np.testing.assert_allclose(of_known, expected, rtol=1e-5)
    native = [value for value, y in zip(expected, known, strict=True) if y.dtype.isnative]
    np.testing.assert_allclose(of_traced, native, rtol=1e-5)
    for dtype in types:
        if np.iinfo(dtype).max >= num_classes:
            with pytest.raises(ValueError, match="labels must lie in"):
                jax.eval_shape(lambda dtype=dtype: loss(s, t, np.array([3, num_classes], dtype)))


def test_a_label_of_64_bits_does_not_wrap():
    s, t, _ = data((1, 5))
    with pytest.raises(ValueError, match=r"got \[4294967299\]"):
        losses.dkd(s, t, np.array([2**32 + 3]))


@pytest.mark.parametrize("name", [n for n in STRUCTURAL if not ROWS[n].per_example])
def test_an_empty_batch_is_one_that_is_masked_altogether(name):
    s, t, y = data((0, K))
    assert ROWS[name].call(s, t, y) == 0
    assert ROWS[name].call(*data(), where=np.zeros(B, bool)) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0, "where": np.arange(12).reshape(3, 4) % 5 > 0},
        {"temperature": np.linspace(1, 4, 12, dtype=np.float32).reshape(3, 4, 1), "standardize": True},
        {**ADAPTIVE, "where": np.arange(60).reshape(3, 4, 5) % 7 > 0},
        {"temperature": functools.partial(temperature.standard_deviation, of="student")},
    ],
)
def test_chunks_of_examples_change_nothing(options):
    """Derivatives of every kind, masks, and temperatures that carry a gradient."""
    s, t, _ = data((3, 4, 5))
    direction = np.cos(np.arange(60.0)).reshape(s.shape).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def derivatives(chunk_size):
        def value(s, tau=None):
            given = options if tau is None else options | {"temperature": tau * options["temperature"]}
            return losses.kd(s, t, chunk_size=chunk_size, **given)

        def slope(s):
            return jax.grad(lambda s: jnp.sum(jnp.sin(value(s))))(s)

        out = *jax.jvp(value, (s,), (direction,)), *jax.jvp(slope, (s,), (direction,))
        of_temperature = (
            [] if callable(options["temperature"]) else [jax.grad(lambda a: value(s, a).sum())(1.0)]
        )
        return *out, *of_temperature

    whole = derivatives(None)
    for chunk_size in (5, 12):
        for a, b in zip(derivatives(chunk_size), whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    for chunk_size in (1, 100):
        np.testing.assert_allclose(losses.kd(s, t, chunk_size=chunk_size, **options), whole[0], rtol=2e-4)


def test_every_loss_has_the_common_options():
    for name in OF_LOGITS:
        assert {"axis", "where"} <= set(inspect.signature(getattr(losses, name)).parameters), name
