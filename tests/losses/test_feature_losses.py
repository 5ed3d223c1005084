"""Losses on features: the numbers of the authors' codes, masks, and extremes."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

FIXTURES = Path(__file__).parents[1] / "fixtures"
LOSSES = np.load(FIXTURES / "losses.npz")
FEATURES = np.load(FIXTURES / "features.npz")
PRECISIONS = {"f32": (np.float32, 2e-5, 1e-3), "f64": (np.float64, 1e-9, 1e-9)}


def feature(name: str, dtype: type) -> jax.Array:
    array = LOSSES[f"feat/{name}"].astype(dtype)
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def itrd(s: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    w, b = (jnp.asarray(LOSSES[f"feat/itrd/embed_{x}"].astype(t.dtype)) for x in "Wb")
    return losses.itrd_correlation(s @ w.T + b, t), losses.itrd_mutual(s, t)


STORED = {
    "rkd": ("emb_s", "emb_t", losses.rkd),
    "rkd_dist_only": ("emb_s", "emb_t", functools.partial(losses.rkd, angle_weight=0.0)),
    "rkd_angle_only": ("emb_s", "emb_t", functools.partial(losses.rkd, distance_weight=0.0)),
    "fitnet": ("hint_s", "hint_t", losses.hint),
    "review_hcl": ("hint_s", "hint_t", losses.hcl),
    "itrd": ("emb_s48", "emb_t", lambda s, t: 2 * itrd(s, t)[0] + itrd(s, t)[1]),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", STORED)
def test_value_and_gradient_are_those_of_the_source(name: str, precision: str) -> None:
    dtype, rtol, of_gradient = PRECISIONS[precision]
    student, teacher, loss = STORED[name]
    with jax.enable_x64(precision == "f64"):
        s, t = feature(student, dtype), feature(teacher, dtype)
        value, gradient = jax.jit(jax.value_and_grad(lambda s: jnp.mean(loss(s, t))))(s)
    key = f"feat/{name}"
    rtol = max(rtol, 1e-7 * ("rkd" in name))
    np.testing.assert_allclose(value, LOSSES[f"{key}/loss_{precision}"], rtol=rtol)
    if f"{key}/grad_{precision}" in LOSSES:
        expected = LOSSES[f"{key}/grad_{precision}"]
        actual = gradient.transpose(0, 3, 1, 2) if gradient.ndim == 4 else gradient
        of_gradient = max(of_gradient, 1e-7 * ("rkd" in name))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=of_gradient * np.abs(expected).max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_of_each_stage_is_that_of_the_source(precision: str) -> None:
    dtype, rtol, of_gradient = PRECISIONS[precision]
    for stage, expected in enumerate(LOSSES[f"feat/at/stage_losses_{precision}"]):
        with jax.enable_x64(precision == "f64"):
            s, t = feature(f"at_gs{stage}", dtype), feature(f"at_gt{stage}", dtype)
            run = jax.jit(jax.value_and_grad(lambda s, t: jnp.mean(losses.attention(s, t))))
            value, gradient = run(s, t)
        np.testing.assert_allclose(value, expected, rtol=rtol)
        stored = LOSSES[f"feat/at/grad{stage}_{precision}"]
        np.testing.assert_allclose(
            gradient.transpose(0, 3, 1, 2), stored, rtol=0, atol=of_gradient * np.abs(stored).max()
        )


def test_margins_and_the_partial_distance_are_those_of_the_source() -> None:
    """Scales of both signs, channels that are hardly ever negative, and every branch of the distance."""
    table = {name: FEATURES[f"ofd/margin_table/{name}"] for name in ("gamma", "beta", "margin", "s", "t")}
    margin = losses.ofd_margin(table["gamma"], table["beta"])
    np.testing.assert_array_equal(margin, table["margin"].astype(np.float32))
    with jax.enable_x64(True):
        s, t = (jnp.asarray(table[name].transpose(0, 2, 3, 1)) for name in "st")
        value, gradient = jax.value_and_grad(lambda s: jnp.mean(losses.ofd(s, t, margin)))(s)
    np.testing.assert_allclose(value, FEATURES["ofd/margin_table/loss_f64"], rtol=1e-9)
    expected = FEATURES["ofd/margin_table/grad.s"]
    np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), expected, atol=1e-9 * np.abs(expected).max())


def test_a_margin_of_a_constant_channel_is_its_limit() -> None:
    for bias in (-2.0, 0.0, 3.0):
        limit = losses.ofd_margin([0.0], [bias])
        np.testing.assert_allclose(limit, losses.ofd_margin([1e-12], [bias]), atol=1e-9)


# Per loss: a function of two features, and whether these are maps.
EXAMPLE = {
    "hint": (losses.hint, True),
    "attention": (losses.attention, True),
    "nst": (losses.nst, True),
    "vid": (lambda s, t: losses.vid(s, t, jnp.full(t.shape[-1], 5.0)), True),
    "ofd": (lambda s, t: losses.ofd(s, t, -jnp.ones(t.shape[-1])), True),
    "hcl": (losses.hcl, True),
}
BATCH = {
    "rkd": losses.rkd,
    "pkt": losses.pkt,
    "sp": losses.sp,
    "cc": losses.cc,
    "itrd_correlation": losses.itrd_correlation,
    "itrd_mutual": losses.itrd_mutual,
}


def test_every_loss_on_features_is_tested() -> None:
    elsewhere = {"ofd_margin", "class_activation"}
    assert EXAMPLE.keys() | BATCH.keys() == set(losses.feature.__all__) - elsewhere


def pair(maps: bool, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (size, 5, 5, 4) if maps else (size, 4)
    s, t = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    return s, t


@pytest.mark.parametrize("name", EXAMPLE)
def test_losses_of_an_example_look_at_no_other(name: str) -> None:
    loss, maps = EXAMPLE[name]
    s, t = pair(maps)
    run = jax.jit(loss)
    whole = run(s, t)
    assert whole.shape == (6,)
    np.testing.assert_allclose(run(s[2:3], t[2:3]), whole[2:3], rtol=1e-6)


@pytest.mark.parametrize("name", BATCH)
def test_masked_examples_do_not_count(name: str) -> None:
    """Whatever they hold, in value and gradient."""
    loss, (s, t) = BATCH[name], pair(False)
    where = np.array([True, True, False, True, True, False])
    kept = (s[where], t[where])
    if name == "cc":  # of neighbours: leave out a mask between two
        where = np.array([True, True, True, True, False, False])
        kept = (s[:4], t[:4])
    run = jax.jit(jax.value_and_grad(lambda s, t, where: loss(s, t, where=where)))
    value, gradient = run(*kept, None)
    s[~where], t[~where] = np.nan, np.inf
    masked, of_masked = run(s, t, where)
    np.testing.assert_allclose(masked, value, rtol=1e-5)
    np.testing.assert_allclose(of_masked[where], gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(of_masked[~where], 0)
    empty, of_empty = run(s, t, np.zeros(6, bool))
    assert np.isfinite(empty)
    np.testing.assert_array_equal(of_empty, 0)


def extremes(maps: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    s, t = pair(maps)
    dead, both = s.copy(), t.copy()
    dead[..., 0], both[..., 1], both[..., 0] = 0, 0, 0
    return {
        "zeros": (0 * s, 0 * t),
        "constant": (0 * s + 0.1, 0 * t - 0.3),
        "equal": (s, s.copy()),
        "dead channels": (dead, both),
        "equal examples": (np.repeat(s[:1], 6, 0), t),
        "large": (1e4 * s, -1e4 * t),
        "small": (1e-6 * s, 1e-6 * t),
        "one example": (s[:1], t[:1]),
    }


@pytest.mark.parametrize("name", [*EXAMPLE, *BATCH])
def test_values_and_gradients_are_finite(name: str) -> None:
    loss, maps = EXAMPLE[name] if name in EXAMPLE else (BATCH[name], False)
    run = jax.jit(jax.value_and_grad(lambda s, t: jnp.mean(loss(s, t))))
    for what, (s, t) in extremes(maps).items():
        for dtype in (jnp.float32, jnp.bfloat16):
            value, gradient = run(jnp.asarray(s, dtype), jnp.asarray(t, dtype))
            assert value.dtype == jnp.float32
            assert gradient.dtype == dtype
            assert np.isfinite(value), (what, dtype, value)
            assert np.all(np.isfinite(np.asarray(gradient, np.float32))), (what, dtype)


@pytest.mark.parametrize("name", [*EXAMPLE, *BATCH])
def test_an_empty_batch_has_no_loss(name: str) -> None:
    loss, maps = EXAMPLE[name] if name in EXAMPLE else (BATCH[name], False)
    values, gradient = jax.jit(
        lambda s, t: (lambda v, pullback: (v, pullback(jnp.ones_like(v))[0]))(
            *jax.vjp(lambda s: loss(s, t), s)
        )
    )(*pair(maps, 0))
    assert values.shape == ((0,) if name in EXAMPLE else ())
    assert np.isfinite(values).all()
    assert gradient.shape[0] == 0


def test_hcl_pools_to_what_is_lower_than_the_map() -> None:
    """As in the source, which looks at the height alone."""
    difference = np.array([3.0, 1.0, -1.0, 1.0], np.float32).reshape(1, 4, 1, 1)
    halves, mean = np.array([2.0, 0.0]), np.array([1.0])
    expected = ((difference**2).mean() + (halves**2).mean() / 2 + (mean**2).mean() / 4) / 1.75
    np.testing.assert_allclose(losses.hcl(difference, 0 * difference), [expected], rtol=1e-6)


@pytest.mark.parametrize("name", [*EXAMPLE, *BATCH])
def test_non_finite_features_give_a_non_finite_loss(name: str) -> None:
    loss, maps = EXAMPLE[name] if name in EXAMPLE else (BATCH[name], False)
    run = jax.jit(lambda s, t: jnp.mean(loss(s, t)))
    for of in (0, 1):
        for value in (np.nan, np.inf, -np.inf):
            if name == "ofd" and value == -np.inf:
                continue  # far below the margin: what OFD leaves out
            features = pair(maps)
            features[of][2, ..., 1] = value
            assert not np.isfinite(run(*features)), (of, value)


@pytest.mark.parametrize("name", [*EXAMPLE, *BATCH])
def test_the_teacher_gets_no_gradient(name: str) -> None:
    """But in `cc`, where both sides are embedded by layers that are trained."""
    loss, maps = EXAMPLE[name] if name in EXAMPLE else (BATCH[name], False)
    gradient = jax.jit(jax.grad(lambda t, s: jnp.sum(loss(s, t))))(*reversed(pair(maps)))
    assert np.any(gradient) == (name == "cc")


@pytest.mark.parametrize("name", [*EXAMPLE, *BATCH])
def test_what_is_refused(name: str) -> None:
    loss, maps = EXAMPLE[name] if name in EXAMPLE else (BATCH[name], False)
    s, t = pair(maps)
    with pytest.raises(TypeError, match="student must be a floating-point feature, got dtype int32"):
        loss(s.astype(np.int32), t)
    with pytest.raises(ValueError, match=r"must be of one batch|must have the same shape"):
        loss(s[:3], t)
    with pytest.raises(ValueError, match=r"student must be (maps|a feature \[B, D\])"):
        loss(s[:, 0, 0, 0] if maps else s[:, 0], t)
    if name in BATCH:
        with pytest.raises(TypeError, match="where must be boolean"):
            loss(s, t, where=np.ones(6, np.float32))
        with pytest.raises(ValueError, match=r"where must have shape \(6,\), one entry an example"):
            loss(s, t, where=np.ones((6, 1), bool))


@pytest.mark.parametrize(("loss", "name"), [(losses.vid, "log_scale"), (losses.ofd, "margin")])
def test_numbers_of_channels_are_one_for_each(loss, name):
    s, t = np.ones((3, 2, 2, 3), np.float32), np.zeros((3, 2, 2, 3), np.float32)
    np.testing.assert_array_equal(loss(s, t, np.full(3, -1.0)), loss(s, t, -1.0))
    for shape in ((4,), (3, 1, 1, 1)):  # the second is broadcast over the examples
        with pytest.raises(ValueError, match=f"{name} must be one number for each of the 3 channels"):
            loss(s, t, np.full(shape, -1.0))


def test_pooling_follows_torchs_areas() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 7, 6, 3)).astype(np.float32)
    for rows, columns in ((7, 6), (1, 1), (3, 4), (7, 2), (9, 12)):
        expected = np.empty((2, rows, columns, 3))
        for i in range(rows):
            for j in range(columns):
                top, left = i * 7 // rows, j * 6 // columns
                bottom, right = -(-(i + 1) * 7 // rows), -(-(j + 1) * 6 // columns)
                expected[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
        actual = losses.feature.adaptive_pool(jnp.asarray(x), (rows, columns))
        np.testing.assert_allclose(actual, expected, atol=1e-6)
