"""DIST: correlations of probabilities over the classes and over the batch.

`jaxkd.losses` documents the shared arguments, and losses on a whole batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import _classes
from jaxkd import temperature as _temperature
from jaxkd._classes import AxisName
from jaxkd.losses._inputs import Pair, prepare, prepare_batch
from jaxkd.losses.logit import softened

# Added to the product of the two norms, as in the authors' code.
_EPS = 1e-8


def dist(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """DIST, a scalar for the whole batch: correlation over the classes and correlation over the batch.

    `L = beta mean_i inter_i + gamma intra`, from `dist_inter` and `dist_intra`.

    Args:
      beta: weight of the correlation over the classes.
      gamma: weight of the correlation over the batch.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    >>> teacher = jnp.array([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0]])
    >>> print(f"{losses.dist(student, teacher, temperature=1.0):.3f}")
    2.353

    Source: Huang et al. 2022 (arXiv 2205.10536), Eq. 10; constants as in its public code.
    """
    x, tau = softened(prepare_batch(student, teacher, axis, where, axis_name), temperature, standardize)
    return beta * _batch_mean(_inter(x, tau), x.examples) + gamma * _intra(x, tau)


def dist_inter(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """DIST's first part: one minus the correlation over the classes of softened probabilities.

    `L_i = T_i^2 (1 - pearson_k(p_i, q_i))`, between 0 and 2 T^2.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> print(f"{losses.dist_inter(student, teacher, temperature=1.0).mean():.3f}")
    1.708

    Source: Huang et al. 2022 (arXiv 2205.10536), Eq. 8.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    return _inter(*softened(x, temperature, standardize))


def dist_intra(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """DIST's second part, a scalar for the whole batch: one minus the correlation over the batch.

    `L = mean_i(T_i^2) (1 - mean_k pearson_i(p_k, q_k))`, between 0 and 2 T^2.  The source has one
    temperature; with several, the factor is the mean of their squares.  A class with constant probability
    over the batch counts as correlation 0, with a gradient of 0: so do all classes in a batch of one.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    >>> teacher = jnp.array([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0]])
    >>> print(f"{losses.dist_intra(student, teacher, temperature=1.0):.3f}")
    1.000

    Source: Huang et al. 2022 (arXiv 2205.10536), Eq. 9.
    """
    x = prepare_batch(student, teacher, axis, where, axis_name)
    return _intra(*softened(x, temperature, standardize))


def _inter(x: Pair, tau: jax.Array) -> jax.Array:
    p, q = x.probabilities()
    mask = jnp.ones_like(p, bool) if x.classes is None else x.classes
    return x.masked(tau**2 * (1 - _correlation(p, q, mask, -1, x.axis_name)))


def _intra(x: Pair, tau: jax.Array) -> jax.Array:
    p, q = x.probabilities()
    mask = jnp.ones_like(p, bool) if x.classes is None else x.classes
    if x.examples is not None:
        mask = mask & x.examples[..., None]
    of_examples = tuple(range(p.ndim - 1))
    rho = _correlation(p, q, mask, of_examples, None)
    in_use = jnp.any(mask, axis=of_examples)
    count = x.total(in_use)
    mean_rho = x.total(jnp.where(in_use, rho, 0.0)) / jnp.maximum(count, 1).astype(rho.dtype)
    loss = _batch_mean(tau**2, x.examples) * (1 - mean_rho)
    return jnp.where(count > 0, loss, 0.0)


def _correlation(
    a: jax.Array, b: jax.Array, mask: jax.Array, axis: int | tuple[int, ...], axis_name: AxisName
) -> jax.Array:
    def total(x: jax.Array, keepdims: bool = False) -> jax.Array:
        return _classes.total(x, axis, axis_name, keepdims=keepdims)

    def centered(a: jax.Array) -> jax.Array:
        # Subtract the largest entry first, so that equal entries centre to exactly 0.
        top = _classes.top(jnp.where(mask, a, 0.0), axis, axis_name, least=0.0)
        a = jnp.where(mask, a - top, 0.0)
        count = jnp.maximum(total(mask, keepdims=True), 1).astype(a.dtype)
        return jnp.where(mask, a - total(a, keepdims=True) / count, 0.0)

    a, b = centered(a), centered(b)
    product, square_a, square_b = total(a * b), total(a**2), total(b**2)
    constant = (square_a == 0) | (square_b == 0)
    # Norms of constant vectors are 0, where sqrt has an infinite slope: take it of 1 there.
    norms = jnp.sqrt(jnp.where(constant, 1.0, square_a)) * jnp.sqrt(jnp.where(constant, 1.0, square_b))
    # The product with a constant is 0; NaN if the other side is not finite.
    return jnp.where(constant, jax.lax.stop_gradient(product), product / (norms + _EPS))


def _batch_mean(values: jax.Array, examples: jax.Array | None) -> jax.Array:
    """The mean over the examples that count; 0 without any."""
    count = values.size if examples is None else jnp.sum(examples)
    kept = values if examples is None else jnp.where(examples, values, 0.0)
    return jnp.sum(kept) / jnp.maximum(count, 1).astype(values.dtype)
