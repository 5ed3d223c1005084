"""Large vocabularies: the chunked loss equals the naive one and takes a fraction of its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, temperature

# Compiling is what takes the time here.
QUICK = {"xla_backend_optimization_level": 0}
ADAPTIVE = {"temperature": temperature.max_logit, "standardize": True}
WAYS = {
    "number": {"temperature": 2.0},
    "adaptive": ADAPTIVE,
    "teacher's maximum": {
        "temperature": functools.partial(temperature.max_logit, of="teacher"),
        "standardize": True,
    },
    "raw maximum": {"temperature": temperature.max_logit},
    "student's deviation": {"temperature": functools.partial(temperature.standard_deviation, of="student")},
    "ratio": {"temperature": temperature.max_ratio},
}


def arrays(tokens=(3, 7), d=5, e=8, k=11, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = ((*tokens, d), (d, k), (*tokens, e), (e, k))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def naive(hidden_s, head_s, hidden_t, head_t, **options):
    return losses.kd(hidden_s @ head_s, hidden_t @ head_t, **options)


def value_and_gradients(loss, inputs, weights):
    def total(*inputs):
        values = loss(*inputs)
        return jnp.sum(values * weights), values

    step = jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)
    (_, values), gradients = jax.jit(step, compiler_options=QUICK)(*inputs)
    return values, gradients


@pytest.mark.parametrize("way", WAYS)
def test_equals_the_naive_loss(way):
    rng = np.random.default_rng(1)
    everything, mean = np.ones((3, 7), bool), np.full((3, 7), 1 / 21)
    with jax.enable_x64(True):
        inputs = arrays(dtype=np.float64)

        @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
        def run(loss, weights, where):
            def total(*inputs):
                values = loss(*inputs, where=where, **WAYS[way])
                return jnp.sum(values * weights), values

            return jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*inputs)

        chunked = functools.partial(losses.kd_from_hidden, chunk_size=4)
        # The mean, uneven weights, a mask.
        for weights, where in (
            (mean, everything),
            (rng.random((3, 7)), everything),
            (mean, rng.random((3, 7)) < 0.6),
        ):
            (_, values), gradients = run(chunked, weights, where)
            (_, expected_values), expected = run(naive, weights, where)
            for a, b in zip((values, *gradients), (expected_values, *expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
            np.testing.assert_array_equal(gradients[2], 0)
            np.testing.assert_array_equal(gradients[3], 0)


@pytest.mark.parametrize("chunk_size", [1, 5, 21, 1000])
def test_any_chunk_size_gives_the_same(chunk_size):
    inputs = arrays()
    actual = losses.kd_from_hidden(*inputs, **ADAPTIVE, chunk_size=chunk_size)
    np.testing.assert_allclose(actual, naive(*inputs, **ADAPTIVE), rtol=2e-5, atol=1e-6)


def test_gradient_reaches_a_temperature_given_as_array():
    inputs = arrays()

    def total(loss, tau):
        return jnp.sum(loss(*inputs, temperature=tau))

    chunked = functools.partial(losses.kd_from_hidden, chunk_size=4)
    for tau in (jnp.float32(3.0), jnp.linspace(1, 4, 21, dtype=jnp.float32).reshape(3, 7, 1)):
        np.testing.assert_allclose(
            jax.grad(total, argnums=1)(chunked, tau), jax.grad(total, argnums=1)(naive, tau), rtol=1e-3
        )


def test_masked_tokens_may_hold_anything():
    inputs = arrays()
    keep = np.arange(21).reshape(3, 7) % 3 > 0
    inputs[0][~keep], inputs[2][~keep] = np.inf, np.nan
    values, gradients = value_and_gradients(
        functools.partial(losses.kd_from_hidden, where=keep, chunk_size=4, **ADAPTIVE), inputs, 1.0
    )
    np.testing.assert_array_equal(values[~keep], 0)
    for array in jax.tree.leaves((values, gradients)):
        assert np.all(np.isfinite(array))


def test_bfloat16_and_vmap():
    inputs = [jnp.bfloat16(a) for a in arrays()]
    loss = functools.partial(losses.kd_from_hidden, chunk_size=4, **ADAPTIVE)
    values, gradients = value_and_gradients(loss, inputs, 1.0)
    assert values.dtype == jnp.float32
    assert gradients[0].dtype == gradients[1].dtype == jnp.bfloat16
    exact = value_and_gradients(loss, [a.astype(jnp.float32) for a in inputs], 1.0)
    np.testing.assert_allclose(values, exact[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients[:2], exact[1][:2], strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * np.abs(b).max())
    mapped = jax.vmap(loss, in_axes=(0, None, 0, None))(*inputs)
    np.testing.assert_allclose(mapped, values, rtol=1e-4, atol=1e-5)


def test_memory_grows_with_the_chunk_and_not_with_the_tokens():
    """By XLA's own analysis of value and gradient; nothing is run."""

    def temporary_memory(loss, tokens):
        shapes = ((tokens, 64), (64, 8000), (tokens, 64), (64, 8000))
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        step = jax.value_and_grad(lambda *a: jnp.mean(loss(*a, **ADAPTIVE)), argnums=(0, 1))
        return jax.jit(step).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    chunked = functools.partial(losses.kd_from_hidden, chunk_size=64)
    small, large = temporary_memory(chunked, 2048), temporary_memory(chunked, 8192)
    assert large < 1.5 * small
    assert 8 * large < temporary_memory(naive, 8192)


def test_gradient_reaches_what_the_rule_and_the_loss_take_from_their_closures():
    """A learned temperature, a bias; also traced by jit, and mapped."""
    inputs = arrays()
    labels = np.arange(21).reshape(3, 7) % 11

    def chunked(scale, bias, labels):
        def loss(h_s, h_t, y):
            s, t = h_s @ inputs[1] + bias, h_t @ inputs[3]
            rule = lambda s, t: scale * temperature.max_logit(s, t)  # noqa: E731
            return losses.dkd(s, t, y, temperature=rule)

        return jnp.sum(losses.in_chunks(loss, inputs[0], inputs[2], labels, chunk_size=4))

    def naive(scale, bias, labels):
        s, t = inputs[0] @ inputs[1] + bias, inputs[2] @ inputs[3]
        rule = lambda s, t: scale * temperature.max_logit(s, t)  # noqa: E731
        return jnp.sum(losses.dkd(s, t, labels, temperature=rule))

    given = jnp.float32(2.0), jnp.linspace(-1, 1, 11, dtype=jnp.float32), labels
    expected = jax.jit(jax.grad(naive, argnums=(0, 1)))(*given)
    gradient = jax.grad(chunked, argnums=(0, 1))
    for actual in (gradient(*given), jax.jit(gradient)(*given)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), actual, expected)
    scales = jnp.array([1.0, 2.0])
    mapped = jax.vmap(gradient, in_axes=(0, None, None))(scales, *given[1:])
    np.testing.assert_allclose(mapped[0][1], expected[0], rtol=1e-3)


def test_what_its_docstring_says_is_not_available():
    inputs = arrays()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda h: losses.kd_from_hidden(h, *inputs[1:]), (inputs[0],), (inputs[0],))


def test_weights_soft_caps_biases_and_a_mask_of_classes():
    inputs, rng = arrays(), np.random.default_rng(2)
    weights = rng.random((3, 7)).astype(np.float32) * (rng.random((3, 7)) < 0.7)
    bias = rng.standard_normal(11).astype(np.float32)
    classes = np.arange(11) < 9
    options = {"temperature": temperature.max_logit, "standardize": True}

    def chunked(h, w, b):
        return losses.kd_from_hidden(
            h, w, *inputs[2:], student_bias=b, teacher_soft_cap=3.0, classes=classes, where=weights,
            chunk_size=4, **options,
        )  # fmt: skip

    def naive(h, w, b):
        s, t = h @ w + b, 3 * jnp.tanh(inputs[2] @ inputs[3] / 3)
        return weights * losses.kd(s[..., :9], t[..., :9], **options)

    results = []
    for loss in (chunked, naive):
        value, pullback = jax.vjp(loss, *inputs[:2], bias)
        results.append((value, *pullback(jnp.ones_like(value))))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"student_hidden": np.ones((3, 7, 4), np.float32)}, ValueError, "student_hidden"),
        ({"teacher_head": np.ones((8, 12), np.float32)}, ValueError, "share tokens and classes"),
        ({"teacher_hidden": np.ones((2, 7, 8), np.float32)}, ValueError, "share tokens and classes"),
        ({"student_head": np.ones((5, 11), np.int32)}, TypeError, "student_head must be floating"),
        ({"where": np.ones((3, 7), complex)}, TypeError, "boolean or of integers"),
        ({"temperature": "max_logit"}, ValueError, "jaxkd.temperature.max_logit"),
        ({"where": np.ones((7,), bool)}, ValueError, "one entry per token"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"temperature": -1.0}, ValueError, "positive"),
        ({"temperature": np.ones((3, 7))}, ValueError, "broadcast"),
    ],
)
def test_errors(change, error, words):
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head")
    with pytest.raises(error, match=words):
        losses.kd_from_hidden(**(dict(zip(names, arrays(), strict=True)) | change))
