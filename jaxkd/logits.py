"""Operations on logits before a loss: checks, z-scores, correlation, masked softmax, ensembles.

Pure functions of arrays.  Only jax may be imported here; temperatures and losses build on this module.

`axis_name`, in every function: the mesh axis or axes over which `jax.shard_map` shards the classes.  Each
device then passes its own classes, and the result is over all classes.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike

from jaxkd import _classes, _meshes
from jaxkd._classes import AxisName

# Replaces minus infinity where an infinity would give 0 * inf = NaN: its exp is exactly 0 in every supported
# precision, and the difference of two of them stays finite.
MASKED_LOGIT = -1e30

# Squares of large logits overflow; with this factor on the logits they do not, up to 1e21 for a million
# classes.  It is a power of two, so that nothing is rounded.
_SMALL = 2.0**-16


def as_logits(name: str, logits: ArrayLike) -> jax.Array:
    """Returns `logits` as a floating array of at least 32 bits.

    Args:
      name: the caller's name for the array, used in errors.
      logits: array of a floating dtype, shape `[..., K]`.

    Raises:
      TypeError: the dtype is not floating (for example, labels were passed).
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
    logits: ArrayLike,
    *,
    axis: int = -1,
    eps: float = 1e-7,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Z-scores of the logits over the classes.

    `z_k = (x_k - mean(x)) / (std(x) + eps)`, with Bessel's correction in the standard deviation
    (division by K - 1).  Constant logits have z = 0 and a gradient of 0.

    Args:
      logits: floating, shape `[..., K]`, K at least 2.
      axis: the class axis.
      eps: added to the standard deviation, in logit units.
      where: optional boolean mask that broadcasts to `logits`; masked classes are ignored and get z = 0.
      axis_name: the mesh axis or axes of manually sharded classes.

    Returns:
      Array of the shape of `logits`, float32 (float64 for float64 input).

    Raises:
      TypeError: the logits are not floating.
      ValueError: fewer than two classes.

    >>> import jax.numpy as jnp, jaxkd
    >>> jaxkd.standardize(jnp.array([1.0, 2.0, 3.0])).round(3).tolist()
    [-1.0, 0.0, 1.0]

    Source: Sun et al. 2024 (arXiv 2403.01427), Z-score of Eq. 9; constants from the authors' code of
    Matsuyama et al. 2025 (arXiv 2503.09030).
    """
    x = as_logits("logits", logits)
    _require_classes(x, axis, axis_name)
    # One division per example, not per logit.
    unit = score_unit(_spread(axis, axis_name, x, where), eps)
    return _centered(x, axis, where, axis_name) * (1.0 / (_SMALL * unit))


def score_unit(spread: jax.Array, eps: float = 1e-7, temperature: ArrayLike = 1.0) -> jax.Array:
    """The divisor of z-scores over a temperature: of the deviation plus eps; infinity for constant logits."""
    # The product is inside: the temperature's gradient would be 0 * inf outside.
    return jnp.where(spread == 0, jnp.inf, temperature * (spread + eps))


def deviation(
    logits: jax.Array, *, axis: int = -1, where: ArrayLike | None = None, axis_name: AxisName = None
) -> jax.Array:
    """Bessel-corrected standard deviation over the classes, the class axis kept with length 1.

    Args:
      logits: floating, shape `[..., K]`, K at least 2.
      axis: the class axis.
      where: optional boolean mask that broadcasts to `logits`.
      axis_name: as in `standardize`.

    Returns:
      Array of shape `[..., 1]`; 0, with a gradient of 0, for constant logits.

    Raises:
      ValueError: fewer than two classes.

    >>> import jax.numpy as jnp
    >>> from jaxkd.logits import deviation
    >>> print(deviation(jnp.array([1.0, 2.0, 3.0])))
    [1.]
    """
    _require_classes(logits, axis, axis_name)
    return _spread(axis, axis_name, logits, where)


def pearson(
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pearson correlation of two sets of logits over the classes.

    `rho = sum_k (a_k - mean a)(b_k - mean b) / (|a - mean a| |b - mean b|)`, in [-1, 1].  If one side is
    constant, it is 0 with a gradient of 0.

    Args:
      a: floating, shape `[..., K]`.
      b: floating, the same shape.
      axis: the class axis.
      where: optional boolean mask that broadcasts to `a`; masked classes are ignored.
      axis_name: as in `standardize`.

    Returns:
      Array of shape `[...]` (without the class axis), float32 (float64 for float64 input).

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
    _require_classes(x, axis, axis_name)
    spread_x, spread_y = (_spread(axis, axis_name, a, where) for a in (x, y))
    constant = (spread_x == 0) | (spread_y == 0)
    x, y = (
        _centered(a, axis, where, axis_name) * (1.0 / jnp.where(constant, 1.0, _SMALL * spread))
        for a, spread in ((x, spread_x), (y, spread_y))
    )
    product = _classes.total(x * y, axis, axis_name, keepdims=True)
    rho = product / _degrees_of_freedom(x, axis, where, axis_name)
    # With a constant side it is 0, or NaN if the other side is not finite.
    return jnp.squeeze(jnp.where(constant, jax.lax.stop_gradient(rho), rho), axis)


def log_softmax(
    logits: jax.Array, where: jax.Array | None = None, *, axis_name: AxisName = None
) -> jax.Array:
    """Log-probabilities over the last axis; masked classes get probability 0 and no gradient.

    Args:
      logits: floating, shape `[..., K]`.
      where: optional boolean mask that broadcasts to `logits`.
      axis_name: as in `standardize`.

    Returns:
      Array of the shape of `logits`; finite everywhere, about -1e30 in masked classes.

    >>> import jax.numpy as jnp
    >>> from jaxkd.logits import log_softmax
    >>> print(jnp.exp(log_softmax(jnp.array([1.0, 1.0, 7.0]), jnp.array([True, True, False]))).round(3))
    [0.5 0.5 0. ]
    """
    if where is not None:
        logits = jnp.where(where, logits, MASKED_LOGIT)
    return _classes.log_softmax(logits, axis_name)


def ensemble(
    teacher_logits: ArrayLike,
    *,
    of: Literal["probabilities", "logits"] = "probabilities",
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Merges the logits of several teachers into one teacher's; call it before the loss.

    With `of="probabilities"`, `t_k = T log((1/M) sum_m softmax(t_m / T)_k)`.  At temperature T, and at no
    other, the softmax of the result is the mean of the members' softmaxes: pass the same T to the loss.  With
    `of="logits"`, `t = (1/M) sum_m t_m`, which depends on no temperature and fits every loss.

    A standardised or adaptive loss computes its temperature from the merged teacher.  For such a loss,
    average logits (or the members' z-scores).  To average probabilities instead, take z-scores first, choose
    T from all members, and pass the z-scores and T to the loss, without `standardize` and without a rule
    (last example).

    Args:
      teacher_logits: logits of M teachers, floating, shape `[M, ..., K]`, classes last.
      of: what to average, "probabilities" or "logits".
      temperature: T, a positive number or an array that broadcasts to `[..., 1]`; unused for logits.
      where: optional boolean class mask that broadcasts to `[..., K]`; masked classes become -inf, so pass
        the same mask to the loss.
      axis_name: as in `standardize`.

    Returns:
      Array of shape `[..., K]`, float32 (float64 for float64 input).

    Raises:
      TypeError: the logits are not floating.
      ValueError: the teacher axis is missing, `of` is unknown, or the temperature is not positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import logits, losses, standardize, temperature
    >>> student, teachers = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[[3.0, 2.0, 2.0]], [[1.0, 0.0, 4.0]]])
    >>> teacher = logits.ensemble(teachers, temperature=4.0)
    >>> print(f"{losses.kd(student, teacher, temperature=4.0).mean():.3f}")
    0.287
    >>> z_student, z_teachers = standardize(student), standardize(teachers)
    >>> tau = jnp.max(jnp.stack([temperature.max_logit(z_student, z) for z in z_teachers]), axis=0)
    >>> z_teacher = logits.ensemble(z_teachers, temperature=tau)
    >>> print(f"{losses.kd(z_student, z_teacher, temperature=tau).mean():.3f}")
    0.493

    Source: Hinton et al. 2015 (arXiv 1503.02531), sections 2 and 5 (ensembles as teachers).
    """
    if of not in ("probabilities", "logits"):
        raise ValueError(f'of must be "probabilities" or "logits", got {of!r}')
    members = as_logits("teacher_logits", teacher_logits)
    if members.ndim < 2:
        raise ValueError(f"teacher_logits must have shape [M, ..., K], got {members.shape}")
    if of == "logits":
        merged = jnp.mean(members, axis=0)
    else:
        tau = per_example("temperature", temperature, members[0])
        mask = None if where is None else jnp.broadcast_to(jnp.asarray(where), members.shape)
        log_p = log_softmax(members / tau[None], mask, axis_name=axis_name)
        merged = tau * (jax.nn.logsumexp(log_p, axis=0) - math.log(members.shape[0]))
    return merged if where is None else jnp.where(jnp.asarray(where), merged, -jnp.inf)


def from_hidden(
    hidden: ArrayLike,
    head: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Computes a language model's logits from its last hidden states.

    `x = c tanh((h W + b) / c)`, or `h W + b` without a soft cap c.  For bfloat16 inputs, the product is
    accumulated in float32, and its gradient is bfloat16.

    Args:
      hidden: h, floating, shape `[..., D]`.
      head: W, floating, shape `[D, K]`; for tied embeddings, pass the transpose.
      bias: b, floating, shape `[K]`.
      soft_cap: c, positive; bounds the logits' magnitude.

    Returns:
      Array of shape `[..., K]`, float32 (float64 for float64 input).

    Raises:
      TypeError: an array is not floating.
      ValueError: the shapes do not fit, or the soft cap is not positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import logits
    >>> head = jnp.array([[9.0, 1.0], [9.0, 1.0]])
    >>> print(logits.from_hidden(jnp.ones((1, 2)), head, soft_cap=6.0).round(2))
    [[5.97 1.93]]

    Source: the soft cap as in Gemma Team 2024 (arXiv 2408.00118), section 2.
    """
    logits = _product(*hidden_and_head("", hidden, head))
    if bias is not None:
        b = jnp.asarray(bias)
        if b.shape != logits.shape[-1:]:
            raise ValueError(f"bias must have shape {logits.shape[-1:]}, one entry per class, got {b.shape}")
        logits = logits + jnp.expand_dims(b.astype(logits.dtype), range(logits.ndim - 1))
    if soft_cap is None:
        return logits
    positive("soft_cap", soft_cap)
    return soft_cap * jnp.tanh(logits / soft_cap)


def hidden_and_head(network: str, hidden: ArrayLike, head: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Returns hidden states and output matrix in one dtype; raises if they do not fit."""
    prefix = f"{network}_" if network else ""
    h, w = jnp.asarray(hidden), jnp.asarray(head)
    for what, array in (("hidden", h), ("head", w)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{prefix}{what} must be floating, got dtype {array.dtype}")
    if h.ndim == 0 or w.ndim != 2 or h.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{prefix}hidden must have shape [..., D] and {prefix}head [D, K], got {h.shape} and {w.shape}; "
            "transpose tied embeddings"
        )
    dtype = jnp.promote_types(h.dtype, w.dtype)
    return h.astype(dtype), w.astype(dtype)


@jax.custom_vjp
def _product(h: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(h, w, preferred_element_type=jnp.promote_types(jnp.float32, h.dtype))


def _product_forward(h: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(h, w), (h, w)


def _product_backward(factors: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    # In the factors' precision, with a [D, K] result; autodiff's would be float32 and transposed.
    h, w = factors
    slope, tokens = slope.astype(h.dtype), tuple(range(h.ndim - 1))
    return (
        _meshes.contract(slope, w.T, ((h.ndim - 1,), (0,)), like=h),
        _meshes.contract(h, slope, (tokens, tokens), like=w),
    )


_product.defvjp(_product_forward, _product_backward)


def per_example(name: str, value: ArrayLike, logits: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a positive number or array in shape `[..., 1]`, one value per example; raises if it cannot."""
    return one_per_example(name, positive(name, value), logits)


def one_per_example(name: str, value: ArrayLike, logits: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Like `per_example`, for values that need no check."""
    array = jnp.asarray(value, logits.dtype)
    expected = (*logits.shape[:-1], 1)
    try:
        fits = jnp.broadcast_shapes(array.shape, expected) == expected
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must broadcast to {expected} (one value per example, the class axis kept with "
            f"length 1), got shape {array.shape}; add the axis with {name}[..., None]"
        )
    return jnp.broadcast_to(array, expected)


def positive(name: str, value: ArrayLike) -> ArrayLike:
    """Returns the value; raises ValueError unless every entry is positive and finite.

    Under `jit` the entries are not known: invalid ones become NaN, and checkify reports them.
    """
    if isinstance(value, jax.core.Tracer):
        usable = (value > 0) & jnp.isfinite(value)
        checkify.debug_check(
            jnp.all(usable), f"{name} must be positive and finite, got {{value}}", value=value
        )
        return nan_unless_positive(value)
    known = np.asarray(value)
    if not jnp.issubdtype(known.dtype, jnp.number) and known.dtype != bool:
        rule = ", or a function such as jaxkd.temperature.max_logit (not its name)"
        raise ValueError(
            f"{name} must be a positive number, or an array of them that broadcasts to [..., 1]"
            f"{rule if name == 'temperature' else ''}; got {value!r}"
        )
    if not np.all((known > 0) & np.isfinite(known)):
        raise ValueError(f"{name} must be positive and finite, got {known}")
    return value


def nan_unless_positive(value: jax.Array) -> jax.Array:
    """The value, with NaN for the entries that are not positive and finite."""
    return value * one_or_nan((value > 0) & jnp.isfinite(value))


def one_or_nan(valid: jax.Array) -> jax.Array:
    """1 where `valid`, else NaN: without a constant that `jax.debug_nans` would find where all is valid."""
    return jnp.sqrt(jnp.where(valid, 1.0, -1.0))


def _require_classes(logits: jax.Array, axis: int, axis_name: AxisName) -> None:
    _classes.require_sharded("the logits", logits, axis_name)
    if _classes.number(logits, axis, axis_name) < 2:
        raise ValueError(
            f"at least 2 classes are needed along axis {axis}, got shape {logits.shape}; "
            "if the classes are on another axis, pass it as axis="
        )


def _degrees_of_freedom(x: jax.Array, axis: int, where: ArrayLike | None, axis_name: AxisName) -> ArrayLike:
    if where is None:
        return _classes.number(x, axis, axis_name) - 1
    return jnp.maximum(_count(x, axis, where, axis_name) - 1, 1)


def _count(x: jax.Array, axis: int, where: ArrayLike, axis_name: AxisName) -> jax.Array:
    """Number of unmasked classes, with the axis kept."""
    mask = jnp.broadcast_to(jnp.asarray(where), x.shape)
    return _classes.total(mask, axis, axis_name, keepdims=True).astype(x.dtype)


def _centered(x: jax.Array, axis: int, where: ArrayLike | None, axis_name: AxisName) -> jax.Array:
    """`x` minus its mean, times `_SMALL`; 0 in masked classes."""
    # The mean is measured from an entry, so that constant logits centre to exactly 0 and not to the rounding
    # error of their mean, whose reciprocal would then scale the gradient.
    if where is None:
        entry = _classes.some_entry(x, axis, axis_name)
        above = _classes.total(x - entry, axis, axis_name, keepdims=True)
        above /= _classes.number(x, axis, axis_name)
        mean, rest = _sum_and_rounding_error(entry, above)
        return _SMALL * (x - mean - rest)
    mask = jnp.asarray(where)
    top = _classes.top(jnp.where(mask, x, -jnp.inf), axis, axis_name)
    x = jnp.where(mask, x - jnp.where(jnp.isneginf(top), 0.0, top), 0.0)
    count = jnp.maximum(_count(x, axis, where, axis_name), 1)
    mean = _classes.total(x, axis, axis_name, keepdims=True) / count
    return jnp.where(mask, _SMALL * (x - mean), 0.0)


def _sum_and_rounding_error(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum `a + b`, and its rounding error (Knuth's TwoSum)."""
    rounded = a + b
    of_b = rounded - a
    return rounded, (a - (rounded - of_b)) + (b - of_b)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _spread(axis: int, axis_name: AxisName, x: jax.Array, where: ArrayLike | None) -> jax.Array:
    """Standard deviation, safe for any magnitude; the slope is finite too (0 at 0)."""
    centered = _centered(x, axis, where, axis_name)
    squares = _classes.total(centered**2, axis, axis_name, keepdims=True)
    return jnp.sqrt(squares / _degrees_of_freedom(x, axis, where, axis_name)) / _SMALL


@_spread.defjvp
def _spread_jvp(
    axis: int, axis_name: AxisName, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    """The slope is the z-scores over their number less 1: their sum is 0, so that the mean adds nothing."""
    x, where = primals
    spread = _spread(axis, axis_name, x, where)
    scores = _centered(x, axis, where, axis_name) * (1.0 / jnp.where(spread == 0, 1.0, _SMALL * spread))
    slope = _classes.total(scores * tangents[0], axis, axis_name, keepdims=True)
    return spread, slope / _degrees_of_freedom(x, axis, where, axis_name)


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two nearest to each entry, without a gradient; dividing by it is exact."""
    bits = int(jnp.finfo(x.dtype).nexp)
    return jax.lax.reduce_precision(jax.lax.stop_gradient(x), exponent_bits=bits, mantissa_bits=0)
