"""What precedes the formula of every loss: checks, axes, masks, temperatures.

Private to `jaxkd.losses`.  No formula of a method is here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental import checkify
from jax.typing import ArrayLike

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature


class Pair(NamedTuple):
    """The checked logits of both networks, classes last; what is masked is 0 and enters no arithmetic.

    `classes` (`[..., K]`) and `examples` (`[...]`) are boolean masks, or None where everything counts.
    """

    student: jax.Array
    teacher: jax.Array
    classes: jax.Array | None
    examples: jax.Array | None

    def standardized(self, eps: float = 1e-7) -> Pair:
        """The z-scores of both."""
        s, t = (_logits.standardize(x, eps=eps, where=self.classes) for x in (self.student, self.teacher))
        return self._replace(student=s, teacher=t)

    def temperature(self, given: _temperature.Temperature, standardize: object = False) -> jax.Array:
        """The temperatures, `[..., 1]`; refuses a rule that z-scores make meaningless."""
        rule = given
        while isinstance(rule, functools.partial):
            rule = rule.func
        if standardize and rule is _temperature.standard_deviation:
            raise ValueError(
                "temperature=standard_deviation has no effect with standardize=True, because all z-scores "
                "have standard deviation 1; leave one of the two out"
            )
        return _temperature.resolve(given, self.student, self.teacher, where=self.classes)

    def over(self, student_temperature: jax.Array, teacher_temperature: jax.Array) -> Pair:
        """Logits divided by temperatures of shape `[..., 1]`."""
        return self._replace(
            student=_divide(self.student, student_temperature),
            teacher=_divide(self.teacher, teacher_temperature),
        )

    def without_infinities(self) -> Pair:
        """A large constant for -inf in classes that the teacher excludes, with the student or alone.

        Their probability is 0 and stays 0; but 0 * inf would be NaN.
        """
        excluded = jnp.isneginf(self.teacher)
        return self._replace(
            student=jnp.where(excluded & jnp.isneginf(self.student), _logits.MASKED_LOGIT, self.student),
            teacher=jnp.maximum(self.teacher, _logits.MASKED_LOGIT),
        )

    def log_softmax(self, *, z_scores: bool = False) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of the teacher and of the student, in this order: `log p` and `log q`.

        Z-scores are finite or NaN, so that no infinity has to be looked for in them.
        """
        x = self if z_scores else self.without_infinities()
        log_p, log_q = (_logits.log_softmax(z, x.classes) for z in (x.teacher, x.student))
        return log_p, log_q

    def probabilities(self) -> tuple[jax.Array, jax.Array]:
        """Softmaxes of the teacher and of the student, p and q; NaN where the student alone has -inf."""
        log_p, log_q = self.log_softmax()
        return jnp.exp(log_p), jnp.where(jnp.isneginf(log_q), jnp.nan, jnp.exp(log_q))

    def masked(self, loss: jax.Array) -> jax.Array:
        """The loss per example, 0 (value and gradient) in masked examples."""
        return loss if self.examples is None else jnp.where(self.examples, loss, 0.0)

    def num_classes(self) -> ArrayLike:
        """How many classes count, for each example; at least 1."""
        if self.classes is None:
            return self.student.shape[-1]
        return jnp.maximum(jnp.sum(self.classes, axis=-1), 1).astype(self.student.dtype)


def prepare(student: ArrayLike, teacher: ArrayLike, axis: int, where: ArrayLike | None) -> Pair:
    """Checks logits and mask, moves the classes to the last axis and cuts the teacher's gradient."""
    s, t = _logits.as_logits("student", student), _logits.as_logits("teacher", teacher)
    if not -s.ndim <= axis < s.ndim:
        raise ValueError(f"axis must name one of the {s.ndim} axes of the logits {s.shape}, got {axis}")
    if t.shape != s.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {s.shape} and {t.shape}; {_remedy(s, t)}"
        )
    dtype = jnp.promote_types(s.dtype, t.dtype)
    s = jnp.moveaxis(s.astype(dtype), axis, -1)
    t = jnp.moveaxis(jax.lax.stop_gradient(t).astype(dtype), axis, -1)
    if s.shape[-1] < 2:
        raise ValueError(f"at least 2 classes are needed, got shape {s.shape}; name their axis with axis=")
    if where is None:
        return Pair(s, t, None, None)
    classes, examples = _masks(where, s.shape, axis)
    entries = examples[..., None] if classes is None else classes
    return Pair(jnp.where(entries, s, 0.0), jnp.where(entries, t, 0.0), classes, examples)


def _remedy(s: jax.Array, t: jax.Array) -> str:
    if t.ndim == s.ndim + 1:
        return "several teachers become one with jaxkd.logits.ensemble"
    return (
        "both hold one logit per class.  If one vocabulary is padded, slice its logits "
        "(teacher[..., :num_classes]), or pad the other one and mask the padding with where="
    )


def boolean_mask(where: ArrayLike) -> jax.Array:
    """Returns the mask as an array; raises TypeError unless it is boolean."""
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(
            f"where must be boolean (True where an entry counts), got dtype {mask.dtype}; convert a mask of "
            "0 and 1 with mask.astype(bool)"
        )
    return mask


def _masks(where: ArrayLike, shape: tuple[int, ...], axis: int) -> tuple[jax.Array | None, jax.Array]:
    mask = boolean_mask(where)
    of_classes = mask.ndim == len(shape)
    if of_classes:
        mask = jnp.moveaxis(mask, axis, -1)
    try:
        mask = jnp.broadcast_to(mask, shape if of_classes else shape[:-1])
    except ValueError:
        raise ValueError(
            f"where must have the rank of the logits and broadcast to {shape} (a mask of classes), or one "
            f"axis fewer and broadcast to {shape[:-1]} (a mask of examples), got shape {jnp.shape(where)}"
        ) from None
    return (mask, jnp.any(mask, axis=-1)) if of_classes else (None, mask)


@jax.custom_jvp
def _divide(logits: jax.Array, tau: jax.Array) -> jax.Array:
    # One division for each example and not for each logit.
    return logits * (1.0 / tau)


@functools.partial(_divide.defjvp, symbolic_zeros=True)
def _divide_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
    """As that of a quotient, in terms of the quotient: no product of two large numbers overflows."""
    tau = primals[1]
    quotient = _divide(*primals)
    of_logits, of_tau = tangents
    if isinstance(of_tau, SymbolicZero):
        return quotient, of_logits if isinstance(of_logits, SymbolicZero) else of_logits * (1.0 / tau)
    through_tau = -quotient * (of_tau / tau)
    if isinstance(of_logits, SymbolicZero):
        return quotient, through_tau
    return quotient, of_logits * (1.0 / tau) + through_tau


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Returns `KL(p || q) = sum_k p_k (log p_k - log q_k)`, shape `[...]`."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def one_hot_labels(labels: ArrayLike, x: Pair) -> jax.Array:
    """Returns the labels as a boolean array of the logits' shape.

    Raises:
      TypeError: the labels are not integers.
      ValueError: the shape does not fit, or a known label of an unmasked example is out of range.  Under
        `jit` the values are not known: there, `jax.experimental.checkify` reports them.
    """
    # NumPy arrays stay as they are until they are checked: jax may narrow 64 bits to 32.
    y = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    shape, num_classes = x.student.shape[:-1], x.student.shape[-1]
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"labels must be integers (class indices, not one-hot rows), got dtype {y.dtype}")
    if y.shape != shape:
        raise ValueError(f"labels must have shape {shape}, one per example, got {y.shape}")
    if y.dtype.itemsize < 4:  # a narrow type does not hold the number of classes
        y = y.astype(np.int32)
    inside = (y >= 0) & (y < num_classes)
    if x.examples is not None:
        inside = inside | ~x.examples
    message = f"labels must lie in [0, {num_classes - 1}], the classes of the logits"
    if isinstance(inside, jax.core.Tracer):
        checkify.debug_check(jnp.all(inside), message + ", got {labels}", labels=jnp.asarray(y))
    elif not np.all(inside):
        wrong = np.asarray(y)[~np.asarray(inside)]
        raise ValueError(f"{message}, got {wrong.ravel()[:5].tolist()}; mask padding with where=")
    y = jnp.asarray(y if isinstance(y, jax.Array) else y.astype(y.dtype.newbyteorder("=")))
    classes = jnp.arange(num_classes, dtype=y.dtype)
    return jnp.expand_dims(y, -1) == jnp.expand_dims(classes, range(y.ndim))
