"""Temperature rules: pure functions from the two networks' logits to one temperature per example.

A rule is any callable `(student_logits, teacher_logits) -> [..., 1]`; every loss of `jaxkd.losses` that
has a temperature takes one.  `functools.partial` sets a rule's options.  Temperatures that change from step
to step (CTKD's learned scalar, DTS's schedule) are pure functions: pass their result to the loss as a number
or an array.  Only jax and `jaxkd.logits` may be imported here.

The rules `max_logit`, `constant`, `standard_deviation` and `max_ratio` share these arguments.

student, teacher
  The logits that the softmax will see, floating, of the same shape `[..., K]`.
axis
  The class axis.
where
  Optional boolean mask that broadcasts to the logits.  Masked classes are ignored.  A loss passes its class
  mask.
axis_name
  The mesh axis or axes over which `jax.shard_map` shards the classes.  A loss passes its own.

They return temperatures of shape `[..., 1]` (the class axis is kept with length 1), NaN where the logits are
NaN.  They raise TypeError if the logits are not floating, and ValueError if the shapes differ, `of` is
unknown, or an option is not positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import _classes
from jaxkd import logits as _logits
from jaxkd._classes import AxisName
from jaxkd.logits import as_logits, positive

__all__ = [
    "MAX_LOGIT_FACTOR",
    "Rule",
    "Temperature",
    "constant",
    "cosine_decay",
    "gradient_reversal",
    "learned",
    "linear_decay",
    "max_logit",
    "max_ratio",
    "resolve",
    "scheduled",
    "standard_deviation",
]

Rule = Callable[..., jax.Array]
Temperature = float | ArrayLike | Rule

# Largest |z| / T for which the quadratic Taylor polynomial of exp stays inside the radius of convergence
# of the logarithm: the positive root of x + x^2 / 2 = 1 is sqrt(3) - 1, and this is its reciprocal.
MAX_LOGIT_FACTOR = (1 + math.sqrt(3)) / 2


def max_logit(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    of: Literal["both", "teacher"] = "both",
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The adaptive temperature: each example's largest absolute logit times (1 + sqrt 3) / 2.

    `T_i = max_k max(|s_ik|, |t_ik|) (1 + sqrt 3) / 2`, so that every scaled logit is in [-0.732, 0.732].  It
    is meant for standardised logits, where with K classes it lies between 1.366 sqrt((K-1)/K) and
    1.366 (K-1)/sqrt(K).  No gradient flows through it.  If all logits are 0, it is 1.

    Args:
      of: "both", the maximum over student and teacher (as in the authors' code), or "teacher", over the
        teacher alone (as in the paper's abstract).

    >>> import jax.numpy as jnp
    >>> from jaxkd import temperature
    >>> student, teacher = jnp.array([[0.5, -1.0, 0.5]]), jnp.array([[2.0, -1.0, -1.0]])
    >>> print(temperature.max_logit(student, teacher).round(4))
    [[2.7321]]

    Source: Matsuyama et al. 2025 (arXiv 2503.09030), as in the authors' code; the derivation of the factor
    is ours.
    """
    _require_word("of", of, ("both", "teacher"))
    s, t = _checked(student, teacher, axis_name)
    magnitude = jnp.abs(t) if of == "teacher" else jnp.maximum(jnp.abs(s), jnp.abs(t))
    if where is not None:
        magnitude = jnp.where(where, magnitude, 0.0)
    largest = _classes.top(magnitude, axis, axis_name)
    return jnp.where(largest == 0, 1.0, largest * MAX_LOGIT_FACTOR)


def constant(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    value: ArrayLike = 4.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The same temperature for every example, as if the number were passed as `temperature=`.

    `T_i = value`.

    Args:
      value: the temperature, positive; a number or an array of shape `[]`.

    >>> import functools, jax.numpy as jnp
    >>> from jaxkd import temperature
    >>> rule = functools.partial(temperature.constant, value=2.0)
    >>> print(rule(jnp.ones((2, 3)), jnp.ones((2, 3))))
    [[2.]
     [2.]]

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    del where
    s, _ = _checked(student, teacher, axis_name)
    value = positive("value", value)
    shape = list(s.shape)
    shape[axis] = 1
    return jnp.broadcast_to(jnp.asarray(value, s.dtype), shape)


def standard_deviation(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    of: Literal["student", "teacher"] = "teacher",
    scale: float = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """NormKD's temperature: a multiple of the standard deviation of one network's logits.

    `T_i = scale * std(x_i)` with Bessel's correction, x the student's or the teacher's logits.  As in the
    source, it is not detached: with `of="student"` the gradient flows through it.  `losses.normkd` uses one
    such temperature for each network.  It is meant for raw logits: standardised logits all have standard
    deviation 1.  For constant logits it is 1.

    Args:
      of: which network's logits to use, "student" or "teacher".
      scale: the temperature of logits with a standard deviation of 1; positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import temperature
    >>> student, teacher = jnp.array([[0.0, 0.0, 3.0]]), jnp.array([[1.0, 2.0, 3.0]])
    >>> print(temperature.standard_deviation(student, teacher))
    [[2.]]

    Source: Chi et al. 2023 (arXiv 2308.00520), the authors' code.
    """
    _require_word("of", of, ("student", "teacher"))
    factor = positive("scale", scale)
    s, t = _checked(student, teacher, axis_name)
    spread = _logits.deviation(s if of == "student" else t, axis=axis, where=where, axis_name=axis_name)
    return jnp.where(spread == 0, 1.0, factor * spread)


def max_ratio(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    of: Literal["student", "teacher"] = "teacher",
    reference: float = 4.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """DTKD's temperature: a reference, split between the networks in the ratio of their largest logits.

    `T_i = 2 reference max(x_i) / (max(s_i) + max(t_i))`, x the logits of the network that `of` names; the two
    temperatures add up to twice the reference.  The largest logit is signed, as in the source, and the
    gradient flows through it.  `losses.dtkd` uses one such temperature for each network.  If a largest
    logit is not positive, the ratio is no valid temperature, and the reference itself is returned
    (standardised logits reach this case only if they are constant).

    Args:
      of: which network's temperature to return, "student" or "teacher".
      reference: the temperature of two networks whose largest logits are equal; positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import temperature
    >>> student, teacher = jnp.array([[0.0, 0.5, 1.0]]), jnp.array([[0.0, 3.0, 1.0]])
    >>> print(temperature.max_ratio(student, teacher), temperature.max_ratio(student, teacher, of="student"))
    [[6.]] [[2.]]

    Source: Wei and Bai 2024 (arXiv 2404.12711), as in public code of the method.
    """
    _require_word("of", of, ("student", "teacher"))
    shared = positive("reference", reference)
    s, t = _checked(student, teacher, axis_name)
    if where is not None:
        # An absent class must not be the largest, and -inf in it must not reach the arithmetic.
        s, t = jnp.where(where, s, -jnp.inf), jnp.where(where, t, -jnp.inf)
    top_s, top_t = (_classes.largest(x, axis, axis_name) for x in (s, t))
    undefined = (top_s <= 0) | (top_t <= 0)
    top_s, top_t = jnp.where(undefined, 1.0, top_s), jnp.where(undefined, 1.0, top_t)
    # Over a power of two, which is exact: the ratio's slope then neither overflows nor vanishes.
    largest = jnp.maximum(top_s, top_t)
    unit = jnp.maximum(_logits.power_of_two(0.5 * largest), jnp.finfo(largest.dtype).tiny)
    top_s, top_t = top_s / unit, top_t / unit
    return (top_s if of == "student" else top_t) / (top_s + top_t) * (2 * shared)


def scheduled(
    previous: ArrayLike,
    progress: ArrayLike,
    divergence: ArrayLike,
    *,
    initial: float = 4.0,
    minimum: float = 2.0,
    maximum: float = 4.0,
    curve: float = 1.0,
    adjust: bool = False,
) -> jax.Array:
    """DTS's schedule: the next step's temperature, from the previous one and the training progress.

    `T' = 0.9 T + 0.1 clip(initial c a, minimum, maximum)`, with `c = (1 + cos(curve pi progress)) / 2`.  The
    factor a is 1; with `adjust=True` it is r = d / (d + 1) for divergence d if r > 1 (that is, if d < -1),
    and 1.35 if r > 2.  No gradient flows through it.  Start with `previous=initial`, and pass the result to a
    loss as its `temperature=`.

    Args:
      previous: the temperature before the step, any shape.
      progress: the fraction of the training that is done, epoch / epochs, in [0, 1].
      divergence: cross-entropy of the teacher minus that of the student on this batch, in nats.
      initial: the cosine's initial temperature.
      minimum: the target's lower bound.
      maximum: the target's upper bound.
      curve: the number of half periods of the cosine in the whole training.
      adjust: whether to use the divergence.

    Returns:
      The temperature after the step, float32 (float64 for float64), in the inputs' common shape.

    Raises:
      ValueError: the bounds are not positive, or are in the wrong order.

    >>> from jaxkd import temperature
    >>> print(f"{temperature.scheduled(4.0, 0.5, 0.2):.3f}")
    3.800

    Source: Dynamic Temperature Scheduler, 2025 (arXiv 2511.13767), as in public code of the method; the
    article's own formula was not available.
    """
    positive("minimum", minimum)
    if minimum > maximum:
        raise ValueError(f"minimum must not exceed maximum, got {minimum} and {maximum}")
    t, x, d = jnp.asarray(previous), jnp.asarray(progress), jnp.asarray(divergence)
    dtype = jnp.promote_types(jnp.result_type(float), jnp.result_type(t, x, d))
    t, x, d = (jax.lax.stop_gradient(a.astype(dtype)) for a in (t, x, d))
    target = initial * 0.5 * (1 + jnp.cos(curve * jnp.pi * x))
    if adjust:
        # At d = -1 the ratio has a pole, with no value to take: leave the target alone.
        ratio = jnp.where(d == -1, 0.0, d / jnp.where(d == -1, 1.0, d + 1))
        target = target * jnp.where(ratio > 2, 1.35, jnp.maximum(ratio, 1.0))
    return 0.9 * t + 0.1 * jnp.clip(target, minimum, maximum)


def learned(
    theta: ArrayLike,
    strength: ArrayLike = -1.0,
    *,
    start: float = 1.0,
    end: float = 20.0,
) -> jax.Array:
    """CTKD's learned temperature: a squashed scalar whose gradient is multiplied by `strength`.

    `T = start + end * sigmoid(theta)`.  In the backward pass, the gradient of theta is multiplied by
    `strength` (lambda), which is at most 0, so that gradient descent on theta *raises* the distillation loss.

    Args:
      theta: the parameter, floating, any shape that broadcasts to `[..., 1]`; CTKD starts at 1.
      strength: lambda, at most 0 in CTKD; see `cosine_decay`.
      start: the lowest temperature, positive.
      end: the width of the range, so that T < start + end.

    Returns:
      The temperature, in the shape of `theta`: pass it to a loss as its `temperature=`.

    Raises:
      TypeError: theta is not floating.
      ValueError: `start` or `end` is not positive.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import losses, temperature
    >>> print(f"{temperature.learned(1.0):.3f}")
    15.621
    >>> s, t = jnp.array([[0.0, 1.0, 5.0]]), jnp.array([[4.0, 1.0, 0.0]])
    >>> def loss(theta, strength):
    ...     return losses.kd(s, t, temperature=temperature.learned(theta, strength)).mean()
    >>> bool(jax.grad(loss)(1.0, -1.0) == -jax.grad(loss)(1.0, 1.0))
    True

    Source: Li et al. 2023 (arXiv 2211.16231), the authors' code.
    """
    positive("start", start)
    positive("end", end)
    value = jnp.asarray(theta)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"theta must be floating, got dtype {value.dtype}; it is a parameter to be learned")
    value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return start + end * jax.nn.sigmoid(gradient_reversal(value, strength))


@jax.custom_jvp
def gradient_reversal(x: ArrayLike, strength: ArrayLike = -1.0) -> jax.Array:
    """Returns `x` unchanged and multiplies its gradient by `strength`.

    `y = x`, and `dL/dx = strength * dL/dy`.

    Args:
      x: floating, any shape.
      strength: a number or an array that broadcasts to `x`; it receives no gradient.

    Returns:
      An array equal to `x`.

    >>> import jax
    >>> from jaxkd import temperature
    >>> print(jax.grad(lambda x: 3 * temperature.gradient_reversal(x, -0.5))(1.0))
    -1.5

    Source: Ganin and Lempitsky 2015 (arXiv 1409.7495), section 3.2.
    """
    return jnp.asarray(x)


@gradient_reversal.defjvp
def _gradient_reversal_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    x, strength = jnp.asarray(primals[0]), primals[1]
    return x, tangents[0] * jnp.asarray(strength, x.dtype)


def cosine_decay(
    epoch: ArrayLike, *, maximum: float = 0.0, minimum: float = -1.0, epochs: int = 10
) -> jax.Array:
    """CTKD's schedule of lambda: from `maximum` to `minimum` along half a cosine, then constant.

    `lambda = minimum + (maximum - minimum) (1 + cos(pi min(epoch, epochs) / epochs)) / 2`.

    Args:
      epoch: the number of epochs begun; CTKD counts from 1.  Any shape.
      maximum: the value at epoch 0.
      minimum: the value from `epochs` on.
      epochs: length of the decay, at least 1.

    Returns:
      The `strength` for `learned`, in the shape of `epoch`.

    Raises:
      ValueError: `epochs` is not positive.

    >>> from jaxkd import temperature
    >>> print(temperature.cosine_decay(5).round(3), temperature.cosine_decay(20))
    -0.5 -1.0

    Source: Li et al. 2023 (arXiv 2211.16231), the authors' code.
    """
    positive("epochs", epochs)
    done = jnp.clip(_as_floating(epoch) / epochs, 0, 1)
    return minimum + (maximum - minimum) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def linear_decay(
    epoch: ArrayLike, *, maximum: float = 0.0, minimum: float = -1.0, epochs: int = 10
) -> jax.Array:
    """CTKD's other schedule of lambda: a straight line that stops one step before its end.

    `lambda = -min(epoch, epochs - 1) (maximum - minimum) / epochs`.  As in the source, only the difference
    of `maximum` and `minimum` matters, and the last step is not taken; CTKD's own command uses
    `cosine_decay`.

    Args:
      epoch: the number of epochs begun.  Any shape.
      maximum: upper end of the range.
      minimum: lower end of the range.
      epochs: length of the decay, at least 1.

    Returns:
      The `strength` for `learned`, in the shape of `epoch`.

    Raises:
      ValueError: `epochs` is not positive.

    >>> from jaxkd import temperature
    >>> print(f"{temperature.linear_decay(5):.1f} {temperature.linear_decay(20):.1f}")
    -0.5 -0.9

    Source: Li et al. 2023 (arXiv 2211.16231), the authors' code.
    """
    positive("epochs", epochs)
    return -jnp.clip(_as_floating(epoch), 0, epochs - 1) * ((maximum - minimum) / epochs)


def resolve(
    temperature: Temperature,
    student: jax.Array,
    teacher: jax.Array,
    *,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Turns a loss's `temperature=` argument into an array of shape `[..., 1]`.

    Args:
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule.
      student: the logits that the softmax will see, classes on the last axis.
      teacher: the same for the teacher.
      where: optional class mask, passed on to a rule as `where=`.
      axis_name: the mesh axis of manually sharded classes, passed on to a rule as `axis_name=`.

    Returns:
      Temperatures, shape `[..., 1]`, in the precision of the logits.

    Raises:
      ValueError: a concrete temperature is not positive and finite, or the shape does not fit.  Under `jit`
        values are not known: an invalid temperature becomes NaN, and `jax.experimental.checkify` reports it
        if the caller passed it.

    >>> import jax.numpy as jnp
    >>> from jaxkd import temperature
    >>> temperature.resolve(4.0, jnp.ones((2, 3)), jnp.ones((2, 3))).tolist()
    [[4.0], [4.0]]
    """
    if callable(temperature):
        options = {"where": where, "axis_name": axis_name}
        given = {name: value for name, value in options.items() if value is not None}
        temperature = temperature(student, teacher, **given)
        # A check inside a compiled program costs as much as a small loss: a rule's result is checked only if
        # it is concrete, the caller's argument always.  Logits that are not finite have no temperature.
        tau = _logits.one_per_example("temperature", temperature, student)
        if not isinstance(tau, jax.core.Tracer):
            finite = jnp.isfinite(student).all(-1) & jnp.isfinite(teacher).all(-1)
            known = not isinstance(finite, jax.core.Tracer)
            _logits.positive("temperature", jnp.where(finite[..., None], tau, 1.0) if known else tau)
        return _logits.nan_unless_positive(tau)
    return _logits.per_example("temperature", temperature, student)


def _as_floating(epoch: ArrayLike) -> jax.Array:
    # A narrow or unsigned integer would wrap in the arithmetic.
    array = jnp.asarray(epoch)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


def _require_word(name: str, word: str, accepted: tuple[str, ...]) -> None:
    if word not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {word!r}")


def _checked(student: ArrayLike, teacher: ArrayLike, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    s, t = as_logits("student", student), as_logits("teacher", teacher)
    if s.shape != t.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {s.shape} and {t.shape}; "
            "both hold one logit per class, so the two networks must share their classes"
        )
    _classes.require_sharded("student", s, axis_name)
    _classes.require_sharded("teacher", t, axis_name)
    return s, t
