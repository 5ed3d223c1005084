"""Decoupled distillation: the target class and the other classes, weighted apart.

One value per example, as in `jaxkd.losses.logit`; labels come third.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd.losses import _inputs
from jaxkd.losses.logit import norm_scaled


def dkd(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    alpha: float = 1.0,
    beta: float = 8.0,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Decoupled KD: the KL divergence split into the target class and the rest, each with its weight.

    `L_i = T_i^2 [alpha KL(b || b') + beta KL(p~ || q~)]`.  With p and q the softened teacher and student as
    in `kd` and y the label, `b = (p_y, 1 - p_y)` and b' the same of q (TCKD), p~ and q~ the softmaxes over
    the classes other than y (NCKD).  For alpha = 1 and beta = 1 - p_y it is `kd`.  All by log-sum-exp: a
    certain teacher gives no NaN.  With two classes NCKD is 0 and TCKD is `kd`.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      labels: target classes, integers in [0, K), shape `[...]`; anything where the example is masked.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.
      standardize: whether to take z-scores of both first.
      alpha: weight of the target-class term.
      beta: weight of the other classes' term.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError: as `kd`, and for labels that are not integers.
      ValueError: as `kd`, and for labels of another shape or out of range.  Under `jit` the range is checked
        only if the caller uses `jax.experimental.checkify`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.dkd(student, teacher, jnp.array([2]), beta=2.0).mean():.3f}")
    1.443

    Source: Zhao et al. 2022 (arXiv 2203.08679), Eq. 7.  The source multiplies the loss by min(epoch / 20, 1),
    epochs counted from 1, which is left to the caller.
    """
    x = _inputs.prepare(student, teacher, axis, where, ensemble)
    is_target = _inputs.one_hot_labels(labels, x)
    if standardize:
        x = _inputs.standardize_both(x)
    tau = _inputs.resolve_temperature(temperature, x, standardize)
    return _decoupled(_inputs.scaled(x, tau, tau), is_target, tau, alpha, beta)


def normdkd(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    scale: float = 2.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """NormKD's temperatures in decoupled KD: a multiple of each network's deviation.

    `L_i = T_i^2 [alpha TCKD + beta NCKD]` as in `dkd`, on `t_i / T_i` and `s_i / T'_i` with the temperatures
    of `normkd`, through whose student part the gradient flows.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      labels: target classes, integers in [0, K), shape `[...]`; anything where the example is masked.
      scale: the temperature of logits with a standard deviation of 1; positive.
      alpha: weight of the target-class term.
      beta: weight of the other classes' term.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, in nats times squared logit units; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `dkd` and `normkd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.normdkd(student, teacher, jnp.array([2])).mean():.3f}")
    2.548

    Source: Chi et al. 2023 (arXiv 2308.00520), the authors' code, where the loss is multiplied by
    min(epoch / 20, 1), which is left to the caller.
    """
    x = _inputs.prepare(student, teacher, axis, where, ensemble)
    is_target = _inputs.one_hot_labels(labels, x)
    x, tau = norm_scaled(x, scale)
    return _decoupled(x, is_target, tau, alpha, beta)


def _decoupled(
    x: _inputs.Inputs, is_target: jax.Array, tau: jax.Array, alpha: float, beta: float
) -> jax.Array:
    others = ~is_target if x.classes is None else ~is_target & x.classes
    margin_t, margin_s = (_margin(logits, is_target, others, x.classes) for logits in (x.teacher, x.student))
    # log p_y = log_sigmoid(margin) and log(1 - p_y) = log_sigmoid(-margin), without a 1 - p that rounds to 0.
    target = jnp.zeros_like(margin_t)
    for sign in (1, -1):
        log_b, log_c = jax.nn.log_sigmoid(sign * margin_t), jax.nn.log_sigmoid(sign * margin_s)
        target += jnp.exp(log_b) * (log_b - log_c)
    log_p, log_q = _logits.log_softmax(x.teacher, others), _logits.log_softmax(x.student, others)
    loss = jnp.squeeze(tau**2, -1) * (alpha * target + beta * _inputs.expectation(log_p, log_p - log_q))
    return _inputs.mask_examples(loss, x.examples)


def _margin(
    logits: jax.Array, is_target: jax.Array, others: jax.Array, classes: jax.Array | None
) -> jax.Array:
    """The target's log-odds: its logit minus the log-sum-exp of the others, shape `[...]`."""
    # A target that is masked out has probability 0 in both networks.
    kept = is_target if classes is None else is_target & classes
    target = jnp.sum(jnp.where(kept, logits, 0.0), axis=-1)
    if classes is not None:
        target = jnp.where(jnp.any(kept, axis=-1), target, _logits.MASKED_LOGIT)
    rest = jax.nn.logsumexp(jnp.where(others, logits, _logits.MASKED_LOGIT), axis=-1)
    return target - rest
