"""What every logit loss does before its arithmetic: checks, axes, masks, ensembles of teachers.

Private to `jaxkd.losses`.  Nothing here has a formula of a method in it.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature

Ensemble = Literal["probabilities", "logits"]


class Inputs(NamedTuple):
    """Checked logits, the classes on the last axis; masked entries are 0, so that no infinity enters.

    `teacher` keeps a leading axis of M teachers if it is an ensemble to be averaged as probabilities.
    `classes` (`[..., K]`) and `examples` (`[...]`) are masks, or None where everything counts.
    """

    student: jax.Array
    teacher: jax.Array
    classes: jax.Array | None
    examples: jax.Array | None


def prepare(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    axis: int,
    where: jax.typing.ArrayLike | None,
    ensemble: Ensemble,
) -> Inputs:
    """Checks the inputs, brings the classes to the last axis and cuts the teacher's gradient.

    Raises:
      TypeError: logits that are not floating.
      ValueError: shapes that differ, fewer than two classes, a mask that does not fit, an axis out of range,
        another word for `ensemble`.
    """
    if ensemble not in ("probabilities", "logits"):
        raise ValueError(f'ensemble must be "probabilities" or "logits", got {ensemble!r}')
    s, t = _logits.as_logits("student", student), _logits.as_logits("teacher", teacher)
    if not -s.ndim <= axis < s.ndim:
        raise ValueError(f"axis must name one of the {s.ndim} axes of the logits {s.shape}, got {axis}")
    if t.shape != s.shape and t.shape[1:] != s.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {s.shape} and {t.shape}; both hold one logit "
            "per class, so the two networks must share their classes (an ensemble of teachers has one more "
            "axis, in front)"
        )
    # Counted from the end, an axis means the same with and without an ensemble's axis in front.
    axis = axis - s.ndim if axis >= 0 else axis
    dtype = jnp.promote_types(s.dtype, t.dtype)
    s = jnp.moveaxis(s.astype(dtype), axis, -1)
    t = jnp.moveaxis(jax.lax.stop_gradient(t).astype(dtype), axis, -1)
    if s.shape[-1] < 2:
        raise ValueError(f"at least 2 classes are needed, got shape {s.shape}; name their axis with axis=")
    classes = examples = None
    if where is not None:
        classes, examples = _masks(where, s.shape, axis)
        entries = examples[..., None] if classes is None else classes
        s = jnp.where(entries, s, 0.0)
        t = jnp.where(jnp.broadcast_to(entries, t.shape), t, 0.0)
    if t.ndim > s.ndim and ensemble == "logits":
        t = jnp.mean(t, axis=0)
    return Inputs(s, t, classes, examples)


def _masks(
    where: jax.typing.ArrayLike, shape: tuple[int, ...], axis: int
) -> tuple[jax.Array | None, jax.Array]:
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(f"where must be boolean (True where an entry counts), got dtype {mask.dtype}")
    of_classes = mask.ndim == len(shape)
    if of_classes:
        mask = jnp.moveaxis(mask, axis, -1)
    try:
        mask = jnp.broadcast_to(mask, shape if of_classes else shape[:-1])
    except ValueError:
        raise ValueError(
            f"where must have the rank of the logits and broadcast to {shape} (a mask of classes), or one "
            f"axis fewer and broadcast to {shape[:-1]} (a mask of examples), got shape {jnp.shape(where)}"
        ) from None
    return (mask, jnp.any(mask, axis=-1)) if of_classes else (None, mask)


def standardize_both(x: Inputs) -> Inputs:
    """Z-scores of both networks' logits."""
    return x._replace(
        student=_logits.standardize(x.student, where=x.classes),
        teacher=_logits.standardize(x.teacher, where=x.classes),
    )


def resolve_temperature(temperature: _temperature.Temperature, x: Inputs, standardize: object) -> jax.Array:
    """The temperatures `[..., 1]`; refuses a rule that standardised logits make meaningless.

    Raises:
      ValueError: the temperature is not positive, does not fit, or is NormKD's on standardised logits.
    """
    rule = temperature
    while isinstance(rule, functools.partial):
        rule = rule.func
    if standardize and rule is _temperature.standard_deviation:
        raise ValueError(
            "temperature=standard_deviation has no effect with standardize=True, because standardised logits "
            "all have standard deviation 1; leave one of the two out"
        )
    return _temperature.resolve(temperature, x.student, x.teacher, where=x.classes)


def scaled(x: Inputs, student_temperature: jax.Array, teacher_temperature: jax.Array) -> Inputs:
    """Logits divided by their temperatures; an ensemble becomes one teacher.

    The ensemble's logits are the logarithm of its mean probability at this temperature.
    """
    # One division for each example and not for each logit.
    t = x.teacher * jnp.broadcast_to(1.0 / teacher_temperature, (*x.teacher.shape[:-1], 1))
    s = x.student * (1.0 / student_temperature)
    return x._replace(student=s, teacher=merge(t, x.student, x.classes))


def merge(teacher: jax.Array, student: jax.Array, classes: jax.Array | None) -> jax.Array:
    """One teacher's logits from an ensemble's, averaged as probabilities; one teacher passes through."""
    if teacher.ndim == student.ndim:
        return teacher
    log_p = _logits.log_softmax(
        teacher, None if classes is None else jnp.broadcast_to(classes, teacher.shape)
    )
    return jax.nn.logsumexp(log_p, axis=0) - math.log(teacher.shape[0])


def log_probabilities(x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of teacher and student (in this order), from `scaled` inputs."""
    return _logits.log_softmax(x.teacher, x.classes), _logits.log_softmax(x.student, x.classes)


def expectation(log_p: jax.Array, values: jax.Array) -> jax.Array:
    """Returns `sum_k p_k values_k`, shape `[...]`; a masked class has p = 0 and a finite value."""
    return jnp.sum(jnp.exp(log_p) * values, axis=-1)


def mask_examples(loss: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Sets the loss of masked examples to 0, and with it their gradient."""
    return loss if keep is None else jnp.where(keep, loss, 0.0)


def one_hot_labels(labels: jax.typing.ArrayLike, x: Inputs) -> jax.Array:
    """Returns the labels as a boolean array of the logits' shape.

    Raises:
      TypeError: labels that are not integers.
      ValueError: a shape that does not fit, or a known label out of range in an example that is not masked.
        Under `jit` the values are not known: there, `jax.experimental.checkify` reports them.
    """
    y = jnp.asarray(labels)
    shape, num_classes = x.student.shape[:-1], x.student.shape[-1]
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"labels must be integers (class indices, not one-hot rows), got dtype {y.dtype}")
    if y.shape != shape:
        raise ValueError(f"labels must have shape {shape}, one per example, got {y.shape}")
    inside = (y >= 0) & (y < num_classes)
    if x.examples is not None:
        inside = inside | ~x.examples
    message = f"labels must lie in [0, {num_classes - 1}], the classes of the logits"
    if isinstance(inside, jax.core.Tracer):
        checkify.debug_check(jnp.all(inside), message + ", got {labels}", labels=y)
    elif not np.all(inside):
        wrong = np.asarray(y)[~np.asarray(inside)]
        raise ValueError(f"{message}, got {wrong.ravel()[:5].tolist()}; mask padding with where=")
    classes = jnp.arange(num_classes, dtype=y.dtype)
    return jnp.expand_dims(y, -1) == jnp.expand_dims(classes, range(y.ndim))
