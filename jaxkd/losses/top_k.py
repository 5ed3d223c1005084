"""Distillation from a stored teacher: the logits and the indices of its k likeliest classes.

`jaxkd.losses` documents the shared arguments.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import _classes
from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd._classes import AxisName
from jaxkd.losses._inputs import Pair, mask_of_examples


def kd_top_k(
    student: ArrayLike,
    teacher_values: ArrayLike,
    teacher_indices: ArrayLike,
    *,
    rest: Literal["bucket", "renormalize", "exclude"] = "bucket",
    temperature: _temperature.Temperature = 1.0,
    standardize: bool = False,
    log_normalizer: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """`kd` from the teacher's k largest logits: KL divergence, times T squared.

    With S the stored classes, v the values and `q = softmax(s / T)` over all K classes:

    - `rest="bucket"`: `L_i = T^2 [sum_S p_k log(p_k / q_k) + p' log(p' / q')]`, `p_k = exp(v_k / T - A)`, and
      `p' = 1 - sum_S p_k`, `q' = 1 - sum_S q_k` the mass of all other classes.  A lower bound of `kd` on all
      logits, with equality for k = K.  It needs A, the `log_normalizer`.
    - `rest="renormalize"`: `L_i = T^2 sum_S p_k log(p_k / q_k)`, `p = softmax(v / T)` over S.  All other
      classes have target probability 0.
    - `rest="exclude"`: `kd` on S alone, with both networks renormalised: the same as `kd` on all logits with
      S as its class mask.  The student's mass on other classes is ignored.

    The adaptive temperature and z-scores are defined on all logits; their mean, standard deviation and
    minimum are not stored.  So they are available only for `rest="exclude"`, over the k classes: the loss is
    then close to one minus the correlation over the teacher's k likeliest classes.

    Args:
      student: logits, floating, shape `[..., K]`.
      teacher_values: the teacher's logits or log-probabilities in the classes of S, floating, shape
        `[..., k]`, k at least 2 for `rest="exclude"`.
      teacher_indices: these classes, different integers in [0, K), shape `[..., k]`; negative for an empty
        slot, whatever its value.
      rest: the treatment of the classes that are not stored.
      temperature: T, in the common forms; a rule (only with `rest="exclude"`) is called with the k logits.
      standardize: z-scores over the k classes, only with `rest="exclude"`.
      log_normalizer: A, the log-sum-exp of `t_k / T` over all K classes; a number or shape `[...]`.  Its
        default, 0, is right for log-probabilities at T = 1.
      where: optional mask of examples, or their weights, shape `[...]`.
      axis_name: as in every loss; the indices refer to the classes of all devices.

    Returns:
      One value per example, shape `[...]`.

    Raises:
      TypeError: logits that are not floating, indices that are not integers.
      ValueError: shapes that do not fit, an index of K or more (under `jit` the loss is NaN), an option that
        does not apply to `rest`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0, 1.0]]), jnp.array([[3.0, 2.0, 2.0, -1.0]])
    >>> values, indices = jax.lax.top_k(jax.nn.log_softmax(teacher), 2)
    >>> print(f"{losses.kd_top_k(student, values, indices)[0]:.3f}")
    0.835
    >>> print(f"{losses.kd(student, teacher, temperature=1.0)[0]:.3f}")
    0.841

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2; Anshumann et al. 2025 (arXiv 2503.16870), for
    the bucket (their ghost token).
    """
    if rest not in ("bucket", "renormalize", "exclude"):
        raise ValueError(f'rest must be "bucket", "renormalize" or "exclude", got {rest!r}')
    s, values = _logits.as_logits("student", student), _logits.as_logits("teacher_values", teacher_values)
    indices, is_stored = _checked_indices(teacher_indices, s, values, axis_name)
    _classes.require_sharded("student", s, axis_name)
    keep, weights = jnp.ones(s.shape[:-1], bool), None
    if where is not None:
        keep, weights = mask_of_examples(where, s.shape[:-1], s.dtype)
        s = jnp.where(keep[..., None], s, 0.0)
    is_stored = is_stored & keep[..., None]
    values = jnp.where(is_stored, jax.lax.stop_gradient(values).astype(s.dtype), 0.0)
    own = jnp.where(is_stored, _classes.take(s, jnp.where(is_stored, indices, 0), axis_name), 0.0)
    top = Pair(own, values, is_stored, keep & jnp.any(is_stored, axis=-1), weights)
    if rest == "exclude":
        if values.shape[-1] < 2:
            raise ValueError('rest="exclude" needs at least 2 stored classes for each example, got 1')
        tau = (top.standardized() if standardize else top).temperature(temperature, standardize)
        return top.masked(tau[..., 0] ** 2 * top.divergence(tau, tau, standardize=standardize))

    if standardize or callable(temperature):
        raise ValueError(
            f"z-scores and temperature rules need all logits; with rest={rest!r} pass a number or an array, "
            'or take rest="exclude", where they are those of the stored classes'
        )
    tau = _logits.per_example("temperature", temperature, s)
    scaled = Pair(s, s, None, None).over(tau, tau).student
    log_q = top.over(tau, tau).student - _classes.log_sum_exp(scaled, axis_name)[..., None]
    log_p = values / tau
    if rest == "renormalize":
        log_p = _logits.log_softmax(log_p, is_stored)
    else:
        log_p = log_p - _normalizer(log_normalizer, s)
        log_p = _of_probabilities(log_p, is_stored)
    loss = jnp.sum(jnp.where(is_stored, jnp.exp(log_p) * (log_p - log_q), 0.0), axis=-1)
    if rest == "bucket":
        loss += _bucket(scaled, jnp.where(is_stored, indices, -1), log_p, is_stored, axis_name)
    return top.masked(tau[..., 0] ** 2 * loss)


def _normalizer(given: ArrayLike, student: jax.Array) -> jax.Array:
    """The teacher's log-sum-exp, `[..., 1]`, without a gradient."""
    a = jax.lax.stop_gradient(jnp.asarray(given))
    if a.shape not in ((), student.shape[:-1]):
        raise ValueError(
            f"log_normalizer must be one number, or one for each example, {student.shape[:-1]}; got {a.shape}"
        )
    return _logits.one_per_example("log_normalizer", a[..., None], student)


def _of_probabilities(log_p: jax.Array, is_stored: jax.Array) -> jax.Array:
    """NaN for examples whose probabilities sum to more than 1; a ValueError where they are known."""
    mass = jnp.sum(jnp.where(is_stored, jnp.exp(log_p), 0.0), axis=-1, keepdims=True)
    most = 1.01  # with the rounding of float16
    if not isinstance(mass, jax.core.Tracer) and mass.size and (largest := float(jnp.max(mass))) > most:
        raise ValueError(
            f"the stored probabilities sum to {largest:.3g}: log_normalizer must be the log-sum-exp of the "
            "teacher's logits / T over all classes (0 is right for log-probabilities at T = 1 alone)"
        )
    return jnp.where(mass > most, jnp.nan, log_p)


def _bucket(
    scaled: jax.Array, indices: jax.Array, log_p: jax.Array, is_stored: jax.Array, axis_name: AxisName
) -> jax.Array:
    """The term of all classes that are not stored."""
    p = jnp.maximum(1 - jnp.sum(jnp.where(is_stored, jnp.exp(log_p), 0.0), axis=-1), 0.0)
    # Where all classes are stored, what is left of 1 is rounding.
    p = jnp.where(jnp.sum(is_stored, axis=-1) < _classes.number(scaled, axis_name=axis_name), p, 0.0)
    others = _classes.without(scaled, indices, _logits.MASKED_LOGIT, axis_name)
    log_q = _classes.log_sum_exp(others, axis_name) - _classes.log_sum_exp(scaled, axis_name)
    return jnp.where(p > 0, p * (jnp.log(jnp.where(p > 0, p, 1.0)) - log_q), 0.0)


def _checked_indices(
    indices: ArrayLike, student: jax.Array, values: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
    """The indices, int32, and where one is stored."""
    i = indices if isinstance(indices, jax.Array) else np.asarray(indices)
    if not jnp.issubdtype(i.dtype, jnp.integer):
        raise TypeError(f"teacher_indices must be integers, got dtype {i.dtype}")
    if i.shape != values.shape or i.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            "teacher_values and teacher_indices must have shape [..., k], with the student's leading axes, "
            f"got {values.shape} and {i.shape} for a student of {student.shape}"
        )
    num_classes = _classes.number(student, axis_name=axis_name)
    if not isinstance(i, jax.core.Tracer) and np.any(np.asarray(i) >= num_classes):
        raise ValueError(f"teacher_indices must be less than {num_classes}, got {np.asarray(i).max()}")
    # A narrow or unsigned type does not hold the classes of all devices, or a sign.
    wide = jnp.asarray(i if isinstance(i, jax.Array) else i.astype(np.int32)).astype(jnp.int32)
    return wide, wide >= 0
