"""Temperature rules: pure functions from the two networks' logits to one temperature per example.

A rule is any callable `(student_logits, teacher_logits) -> [..., 1]`; every loss of `jaxkd.losses` that
has a temperature takes one.  Only jax and `jaxkd.logits` may be imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.logits import as_logits, require_same_shape

Rule = Callable[..., jax.Array]
Temperature = float | jax.typing.ArrayLike | Rule

# Largest |z| / T for which the quadratic Taylor polynomial of exp stays inside the radius of convergence
# of the logarithm: the positive root of x + x^2 / 2 = 1 is sqrt(3) - 1, and this is its reciprocal.
MAX_LOGIT_FACTOR = (1 + math.sqrt(3)) / 2


def max_logit(
    student: jax.typing.ArrayLike,
    teacher: jax.typing.ArrayLike,
    *,
    of: Literal["both", "teacher"] = "both",
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The adaptive temperature: each example's largest absolute logit times (1 + sqrt 3) / 2.

    `T_i = max_k max(|s_ik|, |t_ik|) (1 + sqrt 3) / 2`, so that no scaled logit leaves [-0.732, 0.732].  It is
    meant for standardised logits, where with K classes it lies between 1.366 sqrt((K-1)/K) and
    1.366 (K-1)/sqrt(K).  No gradient flows through it.  Where all logits are 0 it is 1.

    Args:
      student: logits that the softmax will see, floating, shape `[..., K]`.
      teacher: the same for the teacher, same shape.
      of: "both", the maximum over student and teacher (the authors' code), or "teacher", over the teacher
        alone (the abstract's words).
      axis: the class axis.
      where: optional boolean mask that broadcasts to the logits; masked classes take no part.

    Returns:
      Temperatures, shape `[..., 1]` (the class axis is kept with length 1), without unit.

    Raises:
      ValueError: `of` is another word, or the shapes differ.
      TypeError: an input is not floating.

    >>> import jax.numpy as jnp
    >>> from jaxkd import temperature
    >>> student, teacher = jnp.array([[0.5, -1.0, 0.5]]), jnp.array([[2.0, -1.0, -1.0]])
    >>> print(temperature.max_logit(student, teacher).round(4))
    [[2.7321]]

    Source: Matsuyama et al. 2025 (arXiv 2503.09030), as in the authors' code; the derivation of the factor
    is ours.
    """
    if of not in ("both", "teacher"):
        raise ValueError(f'of must be "both" or "teacher", got {of!r}')
    s, t = as_logits("student", student), as_logits("teacher", teacher)
    require_same_shape("student", s, "teacher", t)
    magnitude = jnp.abs(t) if of == "teacher" else jnp.maximum(jnp.abs(s), jnp.abs(t))
    if where is not None:
        magnitude = jnp.where(where, magnitude, 0.0)
    largest = jax.lax.stop_gradient(jnp.max(magnitude, axis=axis, keepdims=True))
    return jnp.where(largest > 0, largest * MAX_LOGIT_FACTOR, 1.0)


def resolve(
    temperature: Temperature,
    student: jax.Array,
    teacher: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """Turns what a loss was given as `temperature=` into an array of shape `[..., 1]`.

    Args:
      temperature: a positive number, an array that broadcasts to `[..., 1]`, or a rule.
      student: the logits that the softmax will see, classes on the last axis.
      teacher: the same for the teacher.
      where: optional mask of classes; a rule is then called with `where=`.

    Raises:
      ValueError: a known temperature is not positive and finite, or the shape does not fit.

    >>> import jax.numpy as jnp
    >>> from jaxkd import temperature
    >>> temperature.resolve(4.0, jnp.ones((2, 3)), jnp.ones((2, 3))).tolist()
    [[4.0], [4.0]]
    """
    if callable(temperature):
        mask = {} if where is None else {"where": where}
        temperature = temperature(student, teacher, **mask)
    if not isinstance(temperature, jax.core.Tracer):
        known = np.asarray(temperature)
        if not np.all((known > 0) & np.isfinite(known)):
            raise ValueError(f"temperature must be positive and finite, got {known}")
    value = jnp.asarray(temperature, student.dtype)
    expected = (*student.shape[:-1], 1)
    try:
        fits = jnp.broadcast_shapes(value.shape, expected) == expected
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"temperature must broadcast to {expected} (one value per example, the class axis kept with "
            f"length 1), got shape {value.shape}; add the axis with temperature[..., None]"
        )
    return jnp.broadcast_to(value, expected)
