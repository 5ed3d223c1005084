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

from jaxkd import _classes
from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd._classes import AxisName


class Pair(NamedTuple):
    """The checked logits of both networks, classes last; what is masked is 0 and enters no arithmetic.

    `classes` (`[..., K]`) and `examples` (`[...]`) are boolean masks, or None where everything counts.
    `weights` (`[...]`) multiply the loss, None for 1.  `axis_name` is where the classes are sharded by hand.
    """

    student: jax.Array
    teacher: jax.Array
    classes: jax.Array | None
    examples: jax.Array | None
    weights: jax.Array | None = None
    axis_name: AxisName = None

    def standardized(self, eps: float = 1e-7) -> Pair:
        """The z-scores of both."""
        s, t = (
            _logits.standardize(x, eps=eps, where=self.classes, axis_name=self.axis_name)
            for x in (self.student, self.teacher)
        )
        return self._replace(student=s, teacher=t)

    def temperature(self, given: _temperature.Temperature, standardize: object = False) -> jax.Array:
        """The temperatures, `[..., 1]`; refuses a rule that z-scores make meaningless."""
        if isinstance(standardize, str):
            raise ValueError(f"standardize must be True or False, got {standardize!r}")
        rule = given
        while isinstance(rule, functools.partial):
            rule = rule.func
        if standardize and rule is _temperature.standard_deviation:
            raise ValueError(
                "temperature=standard_deviation has no effect with standardize=True, because all z-scores "
                "have standard deviation 1; leave one of the two out"
            )
        return _temperature.resolve(
            given, self.student, self.teacher, where=self.classes, axis_name=self.axis_name
        )

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

    def divergence(
        self, student_temperature: jax.Array, teacher_temperature: jax.Array, *, standardize: bool = False
    ) -> jax.Array:
        """`KL(p || q)` of the softmaxes p and q of teacher and student over temperatures `[..., 1]`, `[...]`.

        With `standardize` it is that of their z-scores.  A softmax does not change with the mean, so that a
        z-score over a temperature is a product with one number for each example.
        """
        # Z-scores of infinite logits are NaN, as they are to be.
        x = self if standardize else self.without_infinities()

        def unit(logits: jax.Array, temperature: jax.Array) -> jax.Array:
            if not standardize:
                return temperature
            spread = _logits.deviation(logits, where=x.classes, axis_name=x.axis_name)
            return _logits.score_unit(spread, temperature=temperature)

        units = unit(x.student, student_temperature), unit(x.teacher, teacher_temperature)
        return _divergence(x.axis_name, x.student, x.teacher, *units, x.classes)

    def log_softmax(self) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of the teacher and of the student, in this order: `log p` and `log q`."""
        x = self.without_infinities()
        log_p, log_q = (
            _logits.log_softmax(z, x.classes, axis_name=x.axis_name) for z in (x.teacher, x.student)
        )
        return log_p, log_q

    def infinite_where_excluded(self, log_p: jax.Array) -> jax.Array:
        """`log p`, with -inf where the teacher alone excludes a class: the student must not expect it."""
        return jnp.where(jnp.isneginf(self.teacher) & ~jnp.isneginf(self.student), -jnp.inf, log_p)

    def probabilities(self) -> tuple[jax.Array, jax.Array]:
        """Softmaxes of the teacher and of the student, p and q; NaN where the student alone has -inf."""
        log_p, log_q = self.log_softmax()
        return jnp.exp(log_p), jnp.where(jnp.isneginf(log_q), jnp.nan, jnp.exp(log_q))

    def total(self, values: jax.Array) -> jax.Array:
        """The sum over the classes, `[...]`."""
        return _classes.total(values, axis_name=self.axis_name)

    def kl(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        """`KL(p || q) = sum_k p_k (log p_k - log q_k)`, `[...]`."""
        return self.total(jnp.exp(log_p) * (log_p - log_q))

    def masked(self, loss: jax.Array) -> jax.Array:
        """The loss per example times its weight; 0 (value and gradient) in masked examples."""
        loss = loss if self.weights is None else loss * self.weights
        return loss if self.examples is None else jnp.where(self.examples, loss, 0.0)

    def num_classes(self) -> ArrayLike:
        """How many classes count, for each example; at least 1."""
        if self.classes is None:
            return _classes.number(self.student, axis_name=self.axis_name)
        return jnp.maximum(self.total(self.classes), 1).astype(self.student.dtype)


def prepare(
    student: ArrayLike,
    teacher: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    axis_name: AxisName = None,
) -> Pair:
    """Checks logits and mask, moves the classes to the last axis and cuts the teacher's gradient."""
    s, t = _logits.as_logits("student", student), _logits.as_logits("teacher", teacher)
    if not -s.ndim <= axis < s.ndim:
        raise ValueError(f"axis must name one of the {s.ndim} axes of the logits {s.shape}, got {axis}")
    if t.shape != s.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {s.shape} and {t.shape}; {_remedy(s, t)}"
        )
    _classes.require_sharded("student", s, axis_name)
    _classes.require_sharded("teacher", t, axis_name)
    dtype = jnp.promote_types(s.dtype, t.dtype)
    s = jnp.moveaxis(s.astype(dtype), axis, -1)
    t = jnp.moveaxis(jax.lax.stop_gradient(t).astype(dtype), axis, -1)
    if _classes.number(s, axis_name=axis_name) < 2:
        raise ValueError(f"at least 2 classes are needed, got shape {s.shape}; name their axis with axis=")
    if where is None:
        return Pair(s, t, None, None, axis_name=axis_name)
    classes, examples, weights = _masks(where, s, axis, axis_name)
    entries = examples[..., None] if classes is None else classes
    return Pair(jnp.where(entries, s, 0.0), jnp.where(entries, t, 0.0), classes, examples, weights, axis_name)


def prepare_batch(
    student: ArrayLike,
    teacher: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    axis_name: AxisName = None,
) -> Pair:
    """Like `prepare`, for a loss on a whole batch, which takes no example weights."""
    x = prepare(student, teacher, axis, where, axis_name)
    if x.weights is not None:
        raise TypeError(
            "a floating mask holds weights, which a loss of a whole batch does not have; pass a mask of the "
            "examples that belong to the batch, where=(weights != 0)"
        )
    return x


def prepare_labelled(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    ignore_index: int | None,
    axis_name: AxisName = None,
) -> tuple[Pair, jax.Array]:
    """As `prepare`, and the labels as a boolean array of the logits' shape.

    Raises:
      TypeError: the labels are not integers.
      ValueError: the shape does not fit, or a known label of an unmasked example is out of range.  Under
        `jit` the values are not known: there, the loss of such an example is NaN, and
        `jax.experimental.checkify` reports it.
    """
    x = prepare(student, teacher, axis, where, axis_name)
    # NumPy arrays stay as they are until they are checked: jax may narrow 64 bits to 32.
    y = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    shape, num_classes = x.student.shape[:-1], _classes.number(x.student, axis_name=axis_name)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"labels must be integers (class indices, not one-hot rows), got dtype {y.dtype}")
    if y.shape != shape:
        raise ValueError(f"labels must have shape {shape}, one per example, got {y.shape}")
    if y.dtype.itemsize < 4:  # a narrow type does not hold the number of classes
        y = y.astype(np.int32)
    inside = (y >= 0) & (y < num_classes)
    if ignore_index is not None and np.can_cast(np.min_scalar_type(ignore_index), y.dtype):
        counts = y != ignore_index
        x = x._replace(
            student=jnp.where(counts[..., None], x.student, 0.0),
            teacher=jnp.where(counts[..., None], x.teacher, 0.0),
            examples=jnp.asarray(counts) if x.examples is None else x.examples & counts,
        )
        inside = inside | ~counts
    if x.examples is not None:
        inside = inside | ~x.examples
    message = f"labels must lie in [0, {num_classes - 1}], the classes of the logits"
    if isinstance(inside, jax.core.Tracer):
        checkify.debug_check(jnp.all(inside), message + ", got {labels}", labels=jnp.asarray(y))
        weights = _logits.one_or_nan(inside).astype(x.student.dtype)
        x = x._replace(weights=weights if x.weights is None else weights * x.weights)
    elif not np.all(inside):
        wrong = np.asarray(y)[~np.asarray(inside)]
        raise ValueError(
            f"{message}, got {wrong.ravel()[:5].tolist()}; mask padding with where= or ignore_index="
        )
    y = jnp.asarray(y if isinstance(y, jax.Array) else y.astype(y.dtype.newbyteorder("=")))
    classes = _classes.numbers(x.student, axis_name).astype(y.dtype)
    return x, jnp.expand_dims(y, -1) == jnp.expand_dims(classes, range(y.ndim))


def _remedy(s: jax.Array, t: jax.Array) -> str:
    if t.ndim == s.ndim + 1:
        return "several teachers become one with jaxkd.logits.ensemble"
    return (
        "both hold one logit per class.  If one vocabulary is padded, slice its logits "
        "(teacher[..., :num_classes]), or pad the other one and mask the padding with where="
    )


def boolean_mask(where: ArrayLike) -> jax.Array:
    """Returns a boolean or integer mask as a boolean array, True where it is not 0; else raises TypeError."""
    mask = jnp.asarray(where)
    if jnp.issubdtype(mask.dtype, jnp.integer):
        return mask != 0
    if mask.dtype != bool:
        raise TypeError(
            "where must be boolean or of integers (an entry counts where it is not 0), got dtype "
            f"{mask.dtype}; floating weights are for examples, in losses of one value per example"
        )
    return mask


def mask_of_examples(
    where: ArrayLike, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array | None]:
    """The mask of examples, boolean, and their weights if it is floating."""
    mask, weights = jnp.asarray(where), None
    if jnp.issubdtype(mask.dtype, jnp.floating):
        weights = jnp.broadcast_to(mask.astype(dtype), shape)
        mask = mask != 0
    return jnp.broadcast_to(boolean_mask(mask), shape), weights


def _no_fit(where: ArrayLike, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"where must have the rank of the logits and broadcast to {shape} (a mask of classes), or one axis "
        f"fewer and broadcast to {shape[:-1]} (a mask of examples)"
        f"{', or be a vector of the classes' if len(shape) > 2 else ''}, got shape {jnp.shape(where)}"
    )


def _masks(
    where: ArrayLike, logits: jax.Array, axis: int, axis_name: AxisName
) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
    """The mask of classes, the mask of examples, and the examples' weights."""
    shape = logits.shape
    mask = jnp.asarray(where)
    of_classes = mask.ndim == len(shape)
    if mask.ndim == 1 and len(shape) > 2:  # a vector [K]
        mask, of_classes = mask.reshape(*[1] * (len(shape) - 1), -1), True
    elif of_classes:
        mask = jnp.moveaxis(mask, axis, -1)
    if not of_classes:
        try:
            return None, *mask_of_examples(mask, shape[:-1], logits.dtype)
        except ValueError:
            raise _no_fit(where, shape) from None
    try:
        mask = jnp.broadcast_to(boolean_mask(mask), shape)
    except ValueError:
        raise _no_fit(where, shape) from None
    left = jnp.any(mask, axis=-1)
    if axis_name is not None:
        left = jax.lax.psum(left.astype(jnp.int32), axis_name) > 0
    return mask, left, None


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _divergence(axis_name: AxisName, *arrays: Any) -> jax.Array:
    """`KL(p || q)` of the softmaxes of logits over units, `[...]`; the arrays are those of its parts."""
    return _divergence_parts(axis_name, *arrays)[0][..., 0]


def _divergence_parts(
    axis_name: AxisName,
    student: jax.Array,
    teacher: jax.Array,
    student_unit: jax.Array,
    teacher_unit: jax.Array,
    classes: jax.Array | None,
) -> tuple[jax.Array, ...]:
    """The divergence `[..., 1]`; p, q and `log p - log q`; the logits `[..., K]` over their units `[..., 1]`.

    The divergence is `sum_k p_k d_k + log(Z_q / Z_p)`, with d the difference of the logits over their units,
    each less its largest, and Z the sums of exponentials.  Value and gradient share each logit's exponential.
    """
    total = functools.partial(_classes.total, axis_name=axis_name, keepdims=True)

    def over(logits: jax.Array, unit: jax.Array) -> jax.Array:
        if classes is None:
            return (logits - _classes.top(logits, axis_name=axis_name)) * (1.0 / unit)
        logits = jnp.where(classes, logits, _logits.MASKED_LOGIT)
        logits = logits - _classes.top(logits, axis_name=axis_name)
        return jnp.where(classes, logits * (1.0 / unit), _logits.MASKED_LOGIT)

    s, t = over(student, student_unit), over(teacher, teacher_unit)
    exp_s, exp_t = jnp.exp(s), jnp.exp(t)
    z_t, z_s = total(exp_t), total(exp_s)
    if classes is not None:  # an example without a class has sums of 0, and the divergence 0
        z_t, z_s = jnp.where(z_t == 0, 1.0, z_t), jnp.where(z_s == 0, 1.0, z_s)
    share = 1.0 / z_t
    # Where p is near q, from the difference of the sums: exact at p = q.
    excess = total(exp_s - exp_t) * share
    near = jnp.abs(excess) < 0.5
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, excess, 0.0)), jnp.log(z_s * share))
    difference = t - s
    divergence = total(exp_t * difference) * share + log_ratio
    return divergence, exp_t * share, exp_s * (1.0 / z_s), difference + log_ratio, s, t


@functools.partial(_divergence.defjvp, symbolic_zeros=True)
def _divergence_jvp(axis_name: AxisName, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    divergence, p, q, log_ratio, *logits = _divergence_parts(axis_name, *primals)
    slopes = q - p, p * (log_ratio - divergence)  # by the logits over their units
    total = functools.partial(_classes.total, axis_name=axis_name)
    tangent = jnp.zeros_like(divergence[..., 0])
    for slope, x, unit, of_logits, of_unit in zip(
        slopes, logits, primals[2:4], tangents[:2], tangents[2:4], strict=True
    ):
        if not isinstance(of_logits, SymbolicZero):
            tangent += total(slope * of_logits) / unit[..., 0]
        if not isinstance(of_unit, SymbolicZero):
            tangent -= total(slope * x) * (of_unit / unit)[..., 0]
    return divergence[..., 0], tangent
