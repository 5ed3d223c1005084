"""Losses on logits.

Every function takes student logits first, teacher logits second, hyper-parameters by keyword, and returns
one value per example; the caller reduces (the published numbers use the mean over the batch).  The
teacher's logits never receive a gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature


def kd(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Knowledge distillation: the KL divergence between softened teacher and student, times T squared.

    `L_i = T_i^2 sum_k p_ik (log p_ik - log q_ik)`, with `p = softmax(t / T)` and `q = softmax(s / T)`.  The
    factor T^2 keeps the size of the gradient independent of T; it is inside.  With `standardize=True` s and t
    are z-scores (logit standardisation), and with `temperature=jaxkd.temperature.max_logit` besides, this is
    the adaptive temperature's loss, which is close to one minus the correlation of the two.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape; no gradient flows into them.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, called with the
        logits that the softmax sees (after `standardize`), the classes on the last axis.
      standardize: whether to take z-scores of both first.
      axis: the class axis.
      where: optional boolean mask.  With the rank of the logits it must broadcast to them and masks classes
        (masked logits may be -inf); with one axis fewer it masks examples.  An example that is masked, or has
        no class left, has loss 0 and gradient 0.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError: logits that are not floating.
      ValueError: shapes that differ, fewer than two classes, a temperature that is not positive or does not
        fit, a mask that does not fit.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses, temperature
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(losses.kd(student, teacher, temperature=4.0).round(3))
    [0.794]
    >>> print(losses.kd(student, teacher, temperature=temperature.max_logit, standardize=True).round(3))
    [1.322]

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2; Sun et al. 2024 (arXiv 2403.01427) for z-scores;
    Matsuyama et al. 2025 (arXiv 2503.09030) for the adaptive temperature.
    """
    s, t, mask, keep = _prepare(student, teacher, axis, where)
    if standardize:
        s, t = _logits.standardize(s, where=mask), _logits.standardize(t, where=mask)
    tau = _temperature.resolve(temperature, s, t, where=mask)
    log_p, log_q = _logits.log_softmax(t / tau, mask), _logits.log_softmax(s / tau, mask)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1, where=mask)
    return _mask_examples(jnp.squeeze(tau**2, -1) * divergence, keep)


def _prepare(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Checks the inputs and brings the classes to the last axis.

    Returns student and teacher logits (the teacher's without gradient; masked entries are 0, so that no
    infinity enters the arithmetic), the mask of classes and the mask of examples.
    """
    s, t = _logits.as_logits("student", student), _logits.as_logits("teacher", teacher)
    _logits.require_same_shape("student", s, "teacher", t)
    s, t = jnp.moveaxis(s, axis, -1), jnp.moveaxis(jax.lax.stop_gradient(t), axis, -1)
    if s.shape[-1] < 2:
        raise ValueError(f"at least 2 classes are needed, got shape {s.shape}; name their axis with axis=")
    if where is None:
        return s, t, None, None
    mask = jnp.asarray(where, bool)
    if mask.ndim == s.ndim:
        mask = jnp.moveaxis(mask, axis, -1)
        shape = s.shape
    else:
        shape = s.shape[:-1]
    try:
        mask = jnp.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"where must have the rank of the logits and broadcast to {s.shape} (a mask of classes), or one "
            f"axis fewer and broadcast to {s.shape[:-1]} (a mask of examples), got shape {jnp.shape(where)}"
        ) from None
    if mask.ndim < s.ndim:
        entries = mask[..., None]
        return jnp.where(entries, s, 0.0), jnp.where(entries, t, 0.0), None, mask
    return jnp.where(mask, s, 0.0), jnp.where(mask, t, 0.0), mask, jnp.any(mask, axis=-1)


def _mask_examples(loss: jax.Array, keep: jax.Array | None) -> jax.Array:
    return loss if keep is None else jnp.where(keep, loss, 0.0)
