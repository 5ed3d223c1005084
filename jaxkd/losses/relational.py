"""DIST: correlations of probabilities over the classes and over the batch.

What correlates over the batch is a scalar by nature and depends on the batch: with data parallelism it is
computed per device, unless the caller gathers the logits first.  All leading axes count as one batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import temperature as _temperature
from jaxkd.losses import _inputs
from jaxkd.losses.logit import soften

# Added to the product of the two norms, as in the authors' code.
_EPS = 1e-8


def dist(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """DIST, a scalar of the whole batch: correlation over the classes and correlation over the batch.

    `L = beta mean_i inter_i + gamma intra`, the two of `dist_inter` and `dist_intra`.

    Args:
      student: student logits, floating, shape `[..., K]`; all leading axes count as one batch.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      beta: weight of the correlation over the classes.
      gamma: weight of the correlation over the batch.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.
      standardize: whether to take z-scores of both first.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`; masked examples do not belong to the batch.

    Returns:
      A scalar, without unit; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    >>> teacher = jnp.array([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0]])
    >>> print(f"{losses.dist(student, teacher, temperature=1.0):.3f}")
    2.353

    Source: Huang et al. 2022 (arXiv 2205.10536), Eq. 10; constants as in its public code.
    """
    x, tau = soften(student, teacher, temperature, standardize, ensemble, axis, where)
    loss = beta * _batch_mean(_inter(x, tau), x.examples)
    return loss + gamma * _intra(x, tau)


def dist_inter(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """DIST's first part: one minus the correlation over the classes of softened probabilities.

    `L_i = T_i^2 (1 - pearson_k(p_i, q_i))`, p and q as in `kd`.

    Args:
      student: student logits, floating, shape `[..., K]`.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.
      standardize: whether to take z-scores of both first.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`.

    Returns:
      One value per example, shape `[...]`, between 0 and 2 T^2; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.dist_inter(student, teacher, temperature=1.0).mean():.3f}")
    1.708

    Source: Huang et al. 2022 (arXiv 2205.10536), Eq. 8.
    """
    x, tau = soften(student, teacher, temperature, standardize, ensemble, axis, where)
    return _inter(x, tau)


def dist_intra(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    ensemble: _inputs.Ensemble = "probabilities",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """DIST's second part, a scalar of the whole batch: one minus the correlation over the batch.

    `L = mean_i(T_i^2) (1 - mean_k pearson_i(p_k, q_k))`, p and q as in `kd`.  The source has one temperature;
    with several, the factor is the mean of their squares.  A class whose probability is constant over the
    batch counts as correlation 0, with a gradient of 0: so do all of them in a batch of one.

    Args:
      student: student logits, floating, shape `[..., K]`; all leading axes count as one batch.
      teacher: teacher logits, same shape, or an ensemble `[M, ..., K]`; no gradient flows into them.
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule, as in `kd`.
      standardize: whether to take z-scores of both first.
      ensemble: how several teachers are averaged, as in `kd`.
      axis: the class axis.
      where: optional boolean mask, of classes (the rank of the logits) or of examples (one axis fewer), as
        in `kd`; masked examples do not belong to the batch.

    Returns:
      A scalar, between 0 and 2 T^2; float32 (float64 for float64).

    Raises:
      TypeError, ValueError: as `kd`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    >>> teacher = jnp.array([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0]])
    >>> print(f"{losses.dist_intra(student, teacher, temperature=1.0):.3f}")
    1.000

    Source: Huang et al. 2022 (arXiv 2205.10536), Eq. 9.
    """
    x, tau = soften(student, teacher, temperature, standardize, ensemble, axis, where)
    return _intra(x, tau)


def _inter(x: _inputs.Inputs, tau: jax.Array) -> jax.Array:
    log_p, log_q = _inputs.log_probabilities(x)
    mask = jnp.ones_like(log_p, bool) if x.classes is None else x.classes
    rho = _correlation(jnp.exp(log_p), jnp.exp(log_q), mask, axis=-1)
    return _inputs.mask_examples(jnp.squeeze(tau**2, -1) * (1 - rho), x.examples)


def _intra(x: _inputs.Inputs, tau: jax.Array) -> jax.Array:
    log_p, log_q = _inputs.log_probabilities(x)
    mask = jnp.ones_like(log_p, bool) if x.classes is None else x.classes
    if x.examples is not None:
        mask = mask & x.examples[..., None]
    num_classes = log_p.shape[-1]
    p, q, mask = (a.reshape(-1, num_classes) for a in (jnp.exp(log_p), jnp.exp(log_q), mask))
    rho = _correlation(p, q, mask, axis=0)
    in_use = jnp.any(mask, axis=0)
    mean_rho = jnp.sum(rho, where=in_use) / jnp.maximum(jnp.sum(in_use), 1).astype(rho.dtype)
    loss = _batch_mean(jnp.squeeze(tau**2, -1), x.examples) * (1 - mean_rho)
    return jnp.where(jnp.any(mask), loss, 0.0)


def _correlation(a: jax.Array, b: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
    a, b = _centered(a, mask, axis), _centered(b, mask, axis)
    square_a, square_b = jnp.sum(a**2, axis=axis), jnp.sum(b**2, axis=axis)
    vary = (square_a > 0) & (square_b > 0)
    # Norms of constant vectors are 0, where sqrt has an infinite slope: take it of 1 there.
    norms = jnp.sqrt(jnp.where(vary, square_a, 1.0)) * jnp.sqrt(jnp.where(vary, square_b, 1.0))
    return jnp.where(vary, jnp.sum(a * b, axis=axis) / (norms + _EPS), 0.0)


def _centered(a: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
    # The largest entry is taken off first, so that equal entries centre to exactly 0.
    top = jnp.max(a, axis=axis, keepdims=True, where=mask, initial=0.0)
    a = jnp.where(mask, a - jax.lax.stop_gradient(top), 0.0)
    count = jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True), 1).astype(a.dtype)
    return jnp.where(mask, a - jnp.sum(a, axis=axis, keepdims=True) / count, 0.0)


def _batch_mean(values: jax.Array, examples: jax.Array | None) -> jax.Array:
    if examples is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(examples, values, 0.0)) / jnp.maximum(jnp.sum(examples), 1).astype(values.dtype)
