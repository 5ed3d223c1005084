"""What the losses refuse, and what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from loss_table import OF_LOGITS

from jaxkd import losses, temperature

S = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], np.float32)
T = S[::-1].copy()
Y = np.array([2, 0], np.int32)
LABELLED = {"dkd", "normdkd", "rld"}


@pytest.mark.parametrize("name", sorted(OF_LOGITS))
@pytest.mark.parametrize(
    ("student", "teacher", "options", "error", "words"),
    [
        (S.astype(np.int32), T, {}, TypeError, "student must be floating-point logits, got dtype int32"),
        (S, T.astype(np.int32), {}, TypeError, "teacher must be floating-point logits"),
        (S, T[:, :2], {}, ValueError, r"same shape, got \(2, 3\) and \(2, 2\)"),
        (S[:, :1], T[:, :1], {}, ValueError, "at least 2 classes"),
        (S, T, {"axis": 2}, ValueError, "axis must name one of the 2 axes"),
        (S, T, {"where": np.ones((3,), bool)}, ValueError, "where must have the rank of the logits"),
        (S, T, {"where": np.ones((2, 3), np.float32)}, TypeError, "where must be boolean or of integers"),
    ],
)
def test_every_loss_refuses(name, student, teacher, options, error, words):
    more = (student, teacher) if name == "mlkd" else (Y,) if name in LABELLED else ()
    with pytest.raises(error, match=words):
        getattr(losses, name)(student, teacher, *more, **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: losses.kd(S, T, temperature=0.0), ValueError, "temperature must be positive and finite"),
        (lambda: losses.kd(S, T, temperature=np.inf), ValueError, "positive and finite, got inf"),
        (lambda: losses.kd(S, T, temperature=np.ones(2)), ValueError, r"temperature\[\.\.\., None\]"),
        (
            lambda: losses.kd(S, T, temperature=temperature.standard_deviation, standardize=True),
            ValueError,
            "no effect with standardize=True",
        ),
        (
            lambda: losses.dkd(
                S,
                T,
                Y,
                temperature=functools.partial(temperature.standard_deviation, scale=1.0),
                standardize=True,
            ),
            ValueError,
            "no effect with standardize=True",
        ),
        (
            lambda: losses.kd(S, T, temperature="max_logit"),
            ValueError,
            "number.*array.*temperature.max_logit",
        ),
        (lambda: losses.dist(S, T, temperature=None), ValueError, "positive number.*got None"),
        (lambda: losses.kd(S, T, chunk_size=0), ValueError, "chunk_size must be at least 1"),
        (lambda: losses.kd(S, np.stack([T, T])), ValueError, "jaxkd.logits.ensemble"),
        (lambda: losses.kd(S, T[:, :2]), ValueError, r"teacher\[..., :num_classes\].*where="),
        (lambda: losses.kd(S, T, where=np.ones(2, np.complex64)), TypeError, "where must be boolean"),
        (lambda: losses.dist(S, T, where=np.ones(2)), TypeError, r"where=\(weights != 0\)"),
        (lambda: losses.kd(S, T, axis_name="data"), ValueError, "check_vma=True.*varies over none"),
        (lambda: temperature.max_logit(S, T, axis_name="data"), ValueError, "need no axis_name"),
        (lambda: losses.ttm(S, T, exponent=temperature.max_logit), TypeError, "got a rule"),
        (lambda: losses.wttm(S, T, exponent=0.0), ValueError, "exponent must be positive"),
        (lambda: losses.normkd(S, T, scale=-1.0), ValueError, "scale must be positive"),
        (lambda: losses.gdkd(S, T, top_k=3), ValueError, "top_k must be from 1 to 2 with 3 classes, got 3"),
        (lambda: losses.gdkd(S, T, top_k=0), ValueError, "top_k must be from 1 to 2 with 3 classes, got 0"),
        (lambda: losses.skd(S, T, ridge=0.0), ValueError, "ridge must be positive"),
        (lambda: losses.jensen_shannon(S, T, teacher_weight=1.0), ValueError, "between 0 and 1"),
        (lambda: losses.mse(S, T, over_classes="max"), ValueError, '"mean" or "sum"'),
        (lambda: losses.mlkd(S, T, S, T, standardize="all"), ValueError, 'False, True or "kd"'),
        (lambda: losses.mlkd(S, T, S[:1], T[:1]), ValueError, "two views of the same images"),
        (lambda: losses.dkd(S, T, np.array([2, 3])), ValueError, r"labels must lie in \[0, 2\].*got \[3\]"),
        (lambda: losses.dkd(S, T, np.array([2, -1])), ValueError, "mask padding"),
        (lambda: losses.dkd(S, T, np.array([1.0, 2.0])), TypeError, "labels must be integers"),
        (lambda: losses.normdkd(S, T, np.array([1])), ValueError, r"labels must have shape \(2,\)"),
        (lambda: temperature.max_logit(S, T, of="student"), ValueError, "'both', 'teacher'"),
        (lambda: temperature.max_ratio(S, T[:1]), ValueError, "same shape"),
        (lambda: temperature.constant(S, T, value=0.0), ValueError, "value must be positive"),
        (lambda: temperature.learned(1), TypeError, "theta must be floating"),
        (lambda: temperature.scheduled(4.0, 0.0, 0.0, minimum=5.0), ValueError, "must not exceed"),
        (lambda: temperature.cosine_decay(1, epochs=0), ValueError, "epochs must be positive"),
    ],
)
def test_refused_with_a_clear_message(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_under_jit_checkify_reports_what_cannot_be_known():
    label_error, _ = checkify.checkify(jax.jit(losses.dkd))(S, T, jnp.array([2, 3]))
    with pytest.raises(checkify.JaxRuntimeError, match=r"labels must lie in \[0, 2\]"):
        label_error.throw()
    kd = jax.jit(lambda tau: losses.kd(S, T, temperature=tau))
    temperature_error, _ = checkify.checkify(kd)(-1.0)
    with pytest.raises(checkify.JaxRuntimeError, match="temperature must be positive"):
        temperature_error.throw()
    none, _ = checkify.checkify(jax.jit(losses.dkd))(S, T, Y)
    assert none.get() is None


def test_labels_of_masked_examples_are_not_looked_at():
    loss = losses.dkd(S, T, np.array([2, -100]), where=np.array([True, False]))
    np.testing.assert_array_equal(loss[1], 0)
    assert loss[0] > 0


def test_true_mask_selects_and_the_published_mask_scales():
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 6, 5)).astype(np.float32)
    assert not np.isclose(losses.mlkd(s, t, s, t, true_mask=True), losses.mlkd(s, t, s, t))
