"""What is done to logits before a loss: checks, standardisation, correlation, masked softmax.

Pure functions of arrays.  Only jax may be imported here; temperatures and losses build on this module.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Stands for minus infinity where an infinity would make 0 * inf = NaN: exp of it is exactly 0 in every
# supported precision, and differences of two of them stay finite.
MASKED_LOGIT = -1e30


def as_logits(name: str, logits: jax.typing.ArrayLike) -> jax.Array:
    """Returns `logits` as a floating array of at least 32 bits.

    Args:
      name: what the caller calls the array, for the error.
      logits: array of a floating dtype, shape `[..., K]`.

    Raises:
      TypeError: the dtype is not floating (labels passed for logits, say).
      ValueError: there is no class axis.
    """
    array = jnp.asarray(logits)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating-point logits, got dtype {array.dtype}; "
            "pass the network's raw outputs, or cast them with .astype(jnp.float32)"
        )
    if array.ndim == 0:
        raise ValueError(f"{name} must have a class axis, got a scalar")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def standardize(
    logits: jax.typing.ArrayLike,
    *,
    axis: int = -1,
    eps: float = 1e-7,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Z-scores of the logits over the classes.

    `z_k = (x_k - mean(x)) / (std(x) + eps)`, with Bessel's correction in the standard deviation
    (division by K - 1).  Constant logits have z = 0 and a gradient of 0.

    Args:
      logits: floating, shape `[..., K]`, K at least 2.
      axis: the class axis.
      eps: added to the standard deviation, in logit units.
      where: optional boolean mask that broadcasts to `logits`; masked classes take no part and get z = 0.

    Returns:
      Array of the shape of `logits`, float32 (float64 for float64 input).

    Raises:
      TypeError: the logits are not floating.
      ValueError: fewer than two classes.

    >>> import jax.numpy as jnp, jaxkd
    >>> jaxkd.standardize(jnp.array([1.0, 2.0, 3.0])).round(3).tolist()
    [-1.0, 0.0, 1.0]

    Source: Sun et al. 2024 (arXiv 2403.01427), the Z-score of Eq. 9; the constants are those of the
    authors' code of Matsuyama et al. 2025 (arXiv 2503.09030).
    """
    x = as_logits("logits", logits)
    _require_classes(x, axis)
    centered, variance = _center(x, axis, where)
    spread = _sqrt(variance)
    # One division for each example and not for each logit.
    return centered * jnp.where(spread > 0, 1.0 / jnp.where(spread > 0, spread + eps, 1.0), 0.0)


def deviation(logits: jax.Array, *, axis: int = -1, where: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Bessel-corrected standard deviation over the classes, the class axis kept with length 1.

    Args:
      logits: floating, shape `[..., K]`, K at least 2.
      axis: the class axis.
      where: optional boolean mask that broadcasts to `logits`.

    Returns:
      Array of shape `[..., 1]`; 0, with a gradient of 0, for constant logits.

    Raises:
      ValueError: fewer than two classes.

    >>> import jax.numpy as jnp
    >>> from jaxkd.logits import deviation
    >>> print(deviation(jnp.array([1.0, 2.0, 3.0])))
    [1.]
    """
    _require_classes(logits, axis)
    return _sqrt(_center(logits, axis, where)[1])


def pearson(
    a: jax.typing.ArrayLike,
    b: jax.typing.ArrayLike,
    *,
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Pearson correlation of two sets of logits over the classes.

    `rho = sum_k (a_k - mean a)(b_k - mean b) / (|a - mean a| |b - mean b|)`, in [-1, 1].  It is 0, with a
    gradient of 0, where one side is constant.

    Args:
      a: floating, shape `[..., K]`.
      b: floating, the same shape.
      axis: the class axis.
      where: optional boolean mask that broadcasts to `a`; masked classes take no part.

    Returns:
      Array of shape `[...]` (the class axis is gone), float32 (float64 for float64 input).

    Raises:
      TypeError: an input is not floating.
      ValueError: the shapes differ, or there are fewer than two classes.

    >>> import jax.numpy as jnp, jaxkd
    >>> a = jnp.array([0.0, 1.0, 3.0])
    >>> round(float(jaxkd.pearson(a, 5 - 2 * a)), 5)
    -1.0

    Source: Huang et al. 2022 (arXiv 2205.10536), Eq. 6.
    """
    x, y = as_logits("a", a), as_logits("b", b)
    if x.shape != y.shape:
        raise ValueError(
            f"a and b must have the same shape, got {x.shape} and {y.shape}; both hold one logit per class"
        )
    _require_classes(x, axis)
    x, variance_x = _center(x, axis, where)
    y, variance_y = _center(y, axis, where)
    varies = (variance_x > 0) & (variance_y > 0)
    # Both square roots apart: the product of two large variances may overflow.
    scale = jnp.sqrt(jnp.where(varies, variance_x, 1.0)) * jnp.sqrt(jnp.where(varies, variance_y, 1.0))
    covariance = jnp.sum(x * y, axis=axis, keepdims=True) / _degrees_of_freedom(x, axis, where)
    return jnp.squeeze(jnp.where(varies, covariance / scale, 0.0), axis)


def log_softmax(logits: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Log-probabilities over the last axis; masked classes get probability 0 and no gradient.

    Args:
      logits: floating, shape `[..., K]`.
      where: optional boolean mask that broadcasts to `logits`.

    Returns:
      Array of the shape of `logits`; finite everywhere, about -1e30 in masked classes.

    >>> import jax.numpy as jnp
    >>> from jaxkd.logits import log_softmax
    >>> print(jnp.exp(log_softmax(jnp.array([1.0, 1.0, 7.0]), jnp.array([True, True, False]))).round(3))
    [0.5 0.5 0. ]
    """
    if where is not None:
        logits = jnp.where(where, logits, MASKED_LOGIT)
    return jax.nn.log_softmax(logits, axis=-1)


def _require_classes(logits: jax.Array, axis: int) -> None:
    if logits.shape[axis] < 2:
        raise ValueError(
            f"at least 2 classes are needed along axis {axis}, got shape {logits.shape}; "
            "if the classes lie on another axis, name it with axis="
        )


def _sqrt(x: jax.Array) -> jax.Array:
    # The slope of sqrt is infinite at 0: take it of 1 there, and put the 0 back.
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _degrees_of_freedom(x: jax.Array, axis: int, where: jax.typing.ArrayLike | None) -> jax.typing.ArrayLike:
    if where is None:
        return x.shape[axis] - 1
    count = jnp.sum(jnp.broadcast_to(where, x.shape), axis=axis, keepdims=True)
    return jnp.maximum(count - 1, 1).astype(x.dtype)


def _center(x: jax.Array, axis: int, where: jax.typing.ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Returns `x` minus its mean (0 in masked classes) and its Bessel-corrected variance, axis kept."""
    # One entry is taken off first, so that constant logits centre to exactly 0 and not to the rounding error
    # of their mean, whose reciprocal would then scale the gradient.
    if where is None:
        x = x - jax.lax.stop_gradient(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
        centered = x - jnp.mean(x, axis=axis, keepdims=True)
    else:
        mask = jnp.broadcast_to(jnp.asarray(where), x.shape)
        top = jnp.max(x, axis=axis, keepdims=True, where=mask, initial=-jnp.inf)
        x = jnp.where(mask, x - jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0)), 0.0)
        count = jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True), 1).astype(x.dtype)
        centered = jnp.where(mask, x - jnp.sum(x, axis=axis, keepdims=True) / count, 0.0)
    variance = jnp.sum(centered**2, axis=axis, keepdims=True) / _degrees_of_freedom(x, axis, where)
    return centered, variance
