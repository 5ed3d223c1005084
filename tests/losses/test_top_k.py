"""Stored teachers: the k likeliest classes against all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from loss_table import ADAPTIVE
from meshes import QUICK, gathered

from jaxkd import losses, temperature

B, K = 6, 16


def data(k, shape=(B, K)):
    rng = np.random.default_rng(0)
    s, t = 2 * rng.standard_normal((2, *shape)).astype(np.float32)
    indices = np.argsort(-t, axis=-1)[..., :k]
    return s, t, np.take_along_axis(t, indices, -1), indices


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_numpy_formulas(tau):
    s, t, values, indices = data(5)
    p, q = softmax(t.astype(np.float64) / tau), softmax(s.astype(np.float64) / tau)
    p_top, q_top = (np.take_along_axis(a, indices, -1) for a in (p, q))
    known = np.sum(p_top * np.log(p_top / q_top), -1)
    p_rest, q_rest = 1 - p_top.sum(-1), 1 - q_top.sum(-1)
    bucket = tau**2 * (known + p_rest * np.log(p_rest / q_rest))
    normalizer = np.log(np.exp(t.astype(np.float64) / tau).sum(-1))
    options = {"temperature": tau}
    actual = losses.kd_top_k(s, values, indices, **options, log_normalizer=normalizer)
    np.testing.assert_allclose(actual, bucket, rtol=1e-4)
    assert np.all(actual <= losses.kd(s, t, **options) + 1e-5)  # by the inequality of log sums
    if tau == 1:
        stored = np.log(p_top).astype(np.float32)
        np.testing.assert_allclose(losses.kd_top_k(s, stored, indices), bucket, rtol=1e-4)
    p_top = p_top / p_top.sum(-1, keepdims=True)
    expected = tau**2 * np.sum(p_top * np.log(p_top / q_top), -1)
    actual = losses.kd_top_k(s, values, indices, **options, rest="renormalize")
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("options", [{"temperature": 3.0}, ADAPTIVE])
def test_the_stored_classes_alone_are_a_mask_of_all_logits(options):
    """Which is what the adaptive temperature means there."""
    s, t, values, indices = data(5)
    mask = np.zeros((B, K), bool)
    np.put_along_axis(mask, indices, True, -1)

    def stored(s):
        return losses.kd_top_k(s, values, indices, **options, rest="exclude")

    def whole(s):
        return losses.kd(s, t, **options, where=mask)

    def values_and_gradient(loss):
        values, pullback = jax.vjp(loss, s)
        return values, *pullback(jnp.ones(B))

    both = jax.jit(lambda: [values_and_gradient(loss) for loss in (stored, whole)])()
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_what_rounding_leaves_of_one_is_no_mass_of_other_classes():
    """Log-probabilities of all classes in float16: they sum to less than 1."""
    stored = jnp.array([[-0.6934, -0.6934]], jnp.float16)
    loss = losses.kd_top_k(jnp.zeros((1, 2)), stored, jnp.array([[0, 1]]))
    assert abs(float(loss[0])) < 1e-3


def test_all_classes_stored_is_kd():
    s, t, values, indices = data(K)
    normalizer = jax.nn.logsumexp(t / 2, -1)
    for rest in ("bucket", "renormalize", "exclude"):
        actual = jax.value_and_grad(
            lambda s, rest=rest: losses.kd_top_k(
                s, values, indices, temperature=2.0, rest=rest, log_normalizer=normalizer
            ).sum()
        )(s)
        expected = jax.value_and_grad(lambda s: losses.kd(s, t, temperature=2.0).sum())(s)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rest", ["bucket", "renormalize", "exclude"])
def test_empty_slots_masks_weights_and_narrow_indices(rest):
    s, t, values, indices = data(4)
    loss = functools.partial(losses.kd_top_k, s, rest=rest, log_normalizer=jax.nn.logsumexp(t, -1))
    expected = loss(values, indices)
    padded = np.pad(values, ((0, 0), (0, 2)), constant_values=np.nan)
    slots = np.pad(indices, ((0, 0), (0, 2)), constant_values=-1)
    np.testing.assert_allclose(loss(padded, slots.astype(np.int8)), expected, rtol=1e-5)
    weights = np.array([0, 1, 2, 0, 1, 1], np.float32)
    poisoned = s.copy()
    poisoned[weights == 0] = np.nan
    total, gradient = jax.jit(
        jax.value_and_grad(
            lambda s: losses.kd_top_k(
                s, values, indices, rest=rest, log_normalizer=jax.nn.logsumexp(t, -1), where=weights
            ).sum()
        )
    )(poisoned)
    np.testing.assert_allclose(total, np.sum(weights * expected), rtol=1e-5)
    assert np.all(np.isfinite(gradient))
    # Extreme students, and a teacher whose stored mass rounds to 1.
    certain = np.log(np.array([[1 - 1e-7, 1e-7]] * B, np.float32))
    run = jax.jit(jax.value_and_grad(lambda s: losses.kd_top_k(s, certain, indices[:, :2], rest=rest).sum()))
    for large in (1e4, -1e4):
        value, gradient = run(large * np.sign(s))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
    wrong = jax.jit(lambda i: loss(values, i))(np.where(indices == indices[0, 0], K, indices))
    assert np.isnan(wrong[0])


def test_errors():
    s, _, values, indices = data(4)
    for options, words in (
        ({"rest": "drop"}, '"bucket", "renormalize" or "exclude"'),
        ({"standardize": True}, 'rest="exclude"'),
        ({**ADAPTIVE, "rest": "renormalize"}, "need all logits"),
        ({"temperature": -1.0}, "temperature must be positive"),
        (
            {"rest": "exclude", "standardize": True, "temperature": temperature.standard_deviation},
            "has no effect with standardize=True",
        ),
        ({"log_normalizer": np.zeros((B, 1))}, rf"one for each example, \({B},\); got \({B}, 1\)"),
    ):
        with pytest.raises(ValueError, match=words):
            losses.kd_top_k(s, values, indices, **options)
    with pytest.raises(ValueError, match="needs at least 2 stored classes"):
        losses.kd_top_k(s, values[:, :1], indices[:, :1], rest="exclude")
    with pytest.raises(ValueError, match=r"\[..., k\]"):
        losses.kd_top_k(s, values[:, :3], indices)
    with pytest.raises(ValueError, match="less than 16, got 16"):
        losses.kd_top_k(s, values, np.where(indices == 0, K, indices))
    with pytest.raises(TypeError, match="integers"):
        losses.kd_top_k(s, values, values)


def test_stored_values_that_are_no_probabilities_are_refused():
    """Logits, or log-probabilities at T = 1, without the log-sum-exp at this temperature."""
    s, t, values, indices = data(4)
    log_p = values - jax.nn.logsumexp(t, -1, keepdims=True)
    for stored, tau in ((values + 5, 1.0), (log_p, 4.0)):
        with pytest.raises(ValueError, match=r"stored probabilities sum to .* log_normalizer must be"):
            losses.kd_top_k(s, stored, indices, temperature=tau)
        compiled = jax.jit(lambda stored, tau: losses.kd_top_k(s, stored, indices, temperature=tau))
        assert np.isnan(compiled(stored, tau)).any()
    right = losses.kd_top_k(s, log_p.astype(np.float16), indices)
    np.testing.assert_allclose(right, losses.kd_top_k(s, log_p, indices), atol=2e-2)


def test_the_teachers_normalizer_gets_no_gradient():
    s, t, values, indices = data(4)
    loss = lambda a: losses.kd_top_k(s, values, indices, log_normalizer=a).sum()  # noqa: E731
    assert not jax.grad(loss)(jax.nn.logsumexp(jnp.asarray(t), -1)).any()


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="this jax has no jax.shard_map")
@pytest.mark.parametrize("mode", ["explicit", "auto", "shard_map"])
def test_on_eight_devices(mode):
    s, t, values, indices = data(4, (8, 8, 128))
    normalizer = np.log(np.exp(t).sum(-1))

    def run(s, values, indices, normalizer, **options):
        results = {}
        for rest in ("bucket", "renormalize", "exclude"):
            value, pullback = jax.vjp(
                lambda s, rest=rest: losses.kd_top_k(
                    s, values, indices, rest=rest, log_normalizer=normalizer, **options
                ),
                s,
            )
            results[rest] = value, pullback(jnp.ones_like(value))[0]
        return results

    arguments = s, values, indices, normalizer
    expected = jax.jit(run, compiler_options=QUICK)(*arguments)
    specs = P("data", None, "vocabulary"), P("data"), P("data"), P("data")
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("data", "vocabulary"), axis_types=(kind,) * 2)
    if mode == "shard_map":
        out = dict.fromkeys(("bucket", "renormalize", "exclude"), (P("data"), specs[0]))
        run = jax.shard_map(
            functools.partial(run, axis_name="vocabulary"), mesh=mesh, in_specs=specs, out_specs=out
        )
    else:
        arguments = [
            jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arguments, specs, strict=True)
        ]
    program = jax.jit(run).lower(*arguments).compile(QUICK)
    assert [size for _, size in gathered(program) if size >= s.size // 8] == []
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), program(*arguments), expected
    )
