"""Decoupled distillation: separate weights for some classes, the label or the likeliest, and the others.

One value per example; labels are the third argument.  `jaxkd.losses` documents the shared arguments.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import _classes
from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd._classes import AxisName
from jaxkd.losses._inputs import Pair, prepare, prepare_labelled
from jaxkd.losses.logit import norm_temperatures


def dkd(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    alpha: float = 1.0,
    beta: float = 8.0,
    ignore_index: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Decoupled KD: the KL divergence split into the target class and the rest, each with its weight.

    `L_i = T_i^2 [alpha KL(b || b') + beta KL(p~ || q~)]`, with y the label, `b = (p_y, 1 - p_y)`, b' the same
    of q (TCKD), and p~ and q~ the softmaxes over the classes other than y (NCKD).  For alpha = 1 and
    beta = 1 - p_y this is `kd`.  With two classes NCKD is 0 and TCKD is `kd`.

    Args:
      labels: target classes, integers of any width in [0, K), shape `[...]`; any value for masked examples.
      alpha: weight of the target-class term.
      beta: weight of the other classes' term.
      ignore_index: examples with this label are masked, for example -100.

    Raises:
      TypeError: the labels are not integers.
      ValueError: the labels have another shape or are out of range.  Under `jit` the loss is NaN instead, and
        `jax.experimental.checkify` reports the label.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.dkd(student, teacher, jnp.array([2]), beta=2.0).mean():.3f}")
    1.443

    Source: Zhao et al. 2022 (arXiv 2203.08679), Eq. 7.  The source multiplies the loss by min(epoch / 20, 1),
    epochs counted from 1, which is left to the caller.
    """
    x, is_target = prepare_labelled(student, teacher, labels, axis, where, ignore_index, axis_name)
    x = x.standardized() if standardize else x
    tau = x.temperature(temperature, standardize)
    return _decoupled(x.over(tau, tau), is_target, tau, alpha, beta)


def gdkd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    top_k: int = 5,
    alpha: float = 1.0,
    beta: float = 8.0,
    gamma: float = 8.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Generalised decoupled KD: the teacher's likeliest classes and the rest, each part with its weight.

    `L_i = T_i^2 [alpha KL(b || b') + beta KL(p^ || q^) + gamma KL(p~ || q~)]`, with S the `top_k` classes of
    the teacher's largest logits, `b = (p_S, 1 - p_S)` the probability of S and of the rest, b' the same of q,
    p^ and q^ the softmaxes over S, and p~ and q~ those over the rest.  For alpha = 1, beta = p_S and
    gamma = 1 - p_S this is `kd`.  Of equal logits, those of the first classes are the larger ones.

    Args:
      top_k: the size of S, from 1 to K - 1.
      alpha: weight of the probability of S.
      beta: weight of the classes in S.
      gamma: weight of the rest.

    Raises:
      ValueError: `top_k` leaves no class for the rest.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0, 0.0]]), jnp.array([[3.0, 2.0, 1.0, 2.0]])
    >>> print(f"{losses.gdkd(student, teacher, top_k=2).mean():.3f}")
    19.929

    Source: Zheng and Cheng 2025 (arXiv 2512.04625), the authors' code, where the loss is multiplied by
    min(epoch / 20, 1), which is left to the caller.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    num_classes = _classes.number(x.student, axis_name=axis_name)
    if not 1 <= top_k < num_classes:
        raise ValueError(f"top_k must be from 1 to {num_classes - 1} with {num_classes} classes, got {top_k}")
    likeliest = _classes.are_largest(_in_use(x), top_k, axis_name)
    x = x.standardized() if standardize else x
    tau = x.temperature(temperature, standardize)
    scaled = x.over(tau, tau)
    parts = (
        alpha * _of_two(scaled, likeliest, likeliest, several=True),
        beta * _of_some(scaled, likeliest),
        gamma * _of_some(scaled, ~likeliest),
    )
    return x.masked(tau[..., 0] ** 2 * sum(parts))


def normdkd(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    *,
    scale: float = 2.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    ignore_index: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Decoupled KD with NormKD's temperatures: a multiple of each network's standard deviation.

    `L_i = T_i^2 [alpha TCKD + beta NCKD]` as in `dkd`, on `t_i / T_i` and `s_i / T'_i` with the temperatures
    of `normkd`; the gradient flows through T'.

    Args:
      labels: target classes, as in `dkd`.
      scale: the temperature of logits with a standard deviation of 1; positive.
      alpha: weight of the target-class term.
      beta: weight of the other classes' term.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.normdkd(student, teacher, jnp.array([2])).mean():.3f}")
    2.548

    Source: Chi et al. 2023 (arXiv 2308.00520), the authors' code, where the loss is multiplied by
    min(epoch / 20, 1), which is left to the caller.
    """
    x, is_target = prepare_labelled(student, teacher, labels, axis, where, ignore_index, axis_name)
    tau_student, tau_teacher = norm_temperatures(x, scale)
    return _decoupled(x.over(tau_student, tau_teacher), is_target, tau_teacher, alpha, beta)


def rld(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    alpha: float = 1.0,
    beta: float = 8.0,
    confidence_temperature: float = 1.0,
    ignore_index: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Refined logit distillation: the teacher's confidence, and its order of the classes below the label.

    `L_i = alpha T_c^2 KL(b || b') + beta T_i^2 KL(p~ || q~)`, with `b = (max p, 1 - max p)` and
    `b' = (q_y, 1 - q_y)` at the temperature T_c, y the label; and p~ and q~ the softmaxes over the classes
    whose teacher logit is below the label's.  So a wrong prediction of the teacher is not a target.  If the
    teacher ranks the label last, the second part is 0.

    Args:
      labels: target classes, as in `dkd`.
      alpha: weight of the first part.
      beta: weight of the second part.
      confidence_temperature: T_c, positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
    >>> print(f"{losses.rld(student, teacher, jnp.array([0]), beta=2.0).mean():.3f}")
    1.991

    Source: Sun et al. 2024 (arXiv 2408.07703), the authors' code, where the loss is multiplied by
    min(epoch / 20, 1), which is left to the caller.
    """
    x, is_target = prepare_labelled(student, teacher, labels, axis, where, ignore_index, axis_name)
    # Order the original logits: z-scores may be computed twice, and rounded differently.
    below = x.teacher < x.total(jnp.where(is_target, x.teacher, 0.0))[..., None]
    is_largest = _classes.is_first_largest(_in_use(x), axis_name)
    x = x.standardized() if standardize else x
    tau = x.temperature(temperature, standardize)
    tau_c = _logits.per_example("confidence_temperature", confidence_temperature, x.student)
    confidence = tau_c[..., 0] ** 2 * _of_two(x.over(tau_c, tau_c), is_largest, is_target)
    order = tau[..., 0] ** 2 * _of_some(x.over(tau, tau), below)
    return x.masked(alpha * confidence + beta * order)


def _decoupled(x: Pair, is_target: jax.Array, tau: jax.Array, alpha: float, beta: float) -> jax.Array:
    target, rest = _of_two(x, is_target, is_target), _of_some(x, ~is_target)
    return x.masked(tau[..., 0] ** 2 * (alpha * target + beta * rest))


def _in_use(x: Pair) -> jax.Array:
    """The teacher's logits; -inf for masked classes, which are never among the largest."""
    return x.teacher if x.classes is None else jnp.where(x.classes, x.teacher, -jnp.inf)


def _of_two(x: Pair, of_teacher: jax.Array, of_student: jax.Array, *, several: bool = False) -> jax.Array:
    """KL divergence between (a class or several, all others) of the teacher, and the same of the student."""
    x = x.without_infinities()
    log_p = _in_or_not(x.teacher, of_teacher, x, several)
    log_q = _in_or_not(x.student, of_student, x, several)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _of_some(x: Pair, chosen: jax.Array) -> jax.Array:
    """KL divergence between the softmaxes over some classes; 0 where there is none."""
    if x.classes is not None:
        chosen = chosen & x.classes
    # Of these, the classes with teacher probability above 0; without one there is no p~.
    possible = chosen & ~jnp.isneginf(x.teacher)
    x = x.without_infinities()
    log_p = _logits.log_softmax(x.teacher, possible, axis_name=x.axis_name)
    log_q = _logits.log_softmax(x.student, chosen, axis_name=x.axis_name)
    return x.total(jnp.exp(log_p) * jnp.where(possible, log_p - log_q, 0.0))


def _in_or_not(logits: jax.Array, chosen: jax.Array, x: Pair, several: bool) -> jax.Array:
    """Returns `(log p, log(1 - p))` of a class or several, `[..., 2]`, without a 1 - p that rounds to 0."""
    kept, others = chosen, ~chosen
    if x.classes is not None:
        kept, others = kept & x.classes, others & x.classes
    if several:
        target = _classes.log_sum_exp(jnp.where(kept, logits, _logits.MASKED_LOGIT), x.axis_name)
    else:
        target = x.total(jnp.where(kept, logits, 0.0))
    if x.classes is not None:  # a target that is masked out has probability 0 in both networks
        target = jnp.where(x.total(kept) > 0, target, _logits.MASKED_LOGIT)
    rest = _classes.log_sum_exp(jnp.where(others, logits, _logits.MASKED_LOGIT), x.axis_name)
    # A target of +inf would leave the others' softmax, and so the whole loss, finite.
    log_odds = jnp.where(jnp.isposinf(target), jnp.nan, target - rest)
    return jax.nn.log_sigmoid(jnp.stack([log_odds, -log_odds], axis=-1))
