"""Multi-level logit distillation (MLKD): predictions, their class correlations and their batch correlations.

Streamlined distillation (SKD), whose masks are those of MLKD, is here too.  `jaxkd.losses` documents the
shared arguments, and losses on a whole batch.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd._classes import AxisName
from jaxkd._meshes import on_auto_axes
from jaxkd.losses._inputs import Pair, prepare_batch
from jaxkd.losses.feature import unit
from jaxkd.losses.logit import softened

# The published temperatures besides the base one: all four on the weak view, the first two on the strong
# view.  The last two terms that the source computes for the "strong" view use the weak logits.
_WEAK_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)
_STRONG_TEMPERATURES = (3.0, 5.0)
_AGAIN_ON_WEAK = (2.0, 6.0)


def mlkd(
    student: ArrayLike,
    teacher: ArrayLike,
    student_strong: ArrayLike,
    teacher_strong: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool | Literal["kd"] = False,
    true_mask: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """MLKD, a scalar for the whole batch: KD at five temperatures on two views, and two Gram matrices.

    With the weak view w, the strong view v, T0 the temperature and S = {T0, 3, 5, 2, 6},

    `L = m1 sum_S [KD_T(w) + BC_T(w)] + m2 sum_S CC_T(w) + KD_T0(v) + KD_3(v) + KD_5(v) + KD_2(w) + KD_6(w)`

    where KD_T is the batch mean of `kd` and CC_T, BC_T are `class_correlation` and `batch_correlation`.  This
    follows the authors' code: the last two KD terms use the weak view, and the masks of confident examples
    and classes do not select anything but act as their means: m1 is the fraction of examples whose largest
    teacher probability is at most the batch's median, m2 the fraction of classes whose summed teacher
    probability is at most the median, both about 1/2.

    Args:
      student: student logits of the weakly augmented view.
      teacher: teacher logits of the same view.
      student_strong: student logits of the strongly augmented view of the same images.
      teacher_strong: teacher logits of that view.
      temperature: T0, in the common forms; a rule is called for each view.  The other temperatures are fixed.
      standardize: False; True for z-scores everywhere (Matsuyama et al.); or "kd" for z-scores in the KD
        terms alone, Gram matrices and masks on raw logits (Sun et al.).
      true_mask: whether the masks really select: the examples in KD_T(w) and BC_T, the classes in CC_T; the
        sums are divided as before.  This differs from the published code.
      where: one mask for both views.

    Raises:
      ValueError: the two views differ in shape, or `standardize` is unknown.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    >>> teacher = jnp.array([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0]])
    >>> print(f"{losses.mlkd(student, teacher, student - 0.5, teacher * 2.0):.3f}")
    6.608

    Source: Jin et al. 2023, "Multi-Level Logit Distillation" (CVPR), the authors' code; the standardised
    variants as in the codes of arXiv 2403.01427 ("kd") and arXiv 2503.09030 (True).
    """
    if standardize not in (False, True, "kd"):
        raise ValueError(f'standardize must be False, True or "kd", got {standardize!r}')
    of_all = standardize != "kd" and bool(standardize)
    if jnp.shape(student) != jnp.shape(student_strong):
        raise ValueError(
            f"student and student_strong must have the same shape, got {jnp.shape(student)} and "
            f"{jnp.shape(student_strong)}; they are two views of the same images"
        )
    weak = prepare_batch(student, teacher, axis, where)
    strong = prepare_batch(student_strong, teacher_strong, axis, where)
    weak_kd, strong_kd = (x.standardized() if standardize else x for x in (weak, strong))
    weak = weak_kd if of_all else weak
    base_weak, base_strong = (x.temperature(temperature, bool(standardize)) for x in (weak_kd, strong_kd))
    return on_auto_axes(
        functools.partial(_mlkd, true_mask=true_mask), weak, weak_kd, strong_kd, base_weak, base_strong
    )


def _mlkd(
    weak: Pair,
    weak_kd: Pair,
    strong_kd: Pair,
    base_weak: jax.Array,
    base_strong: jax.Array,
    *,
    true_mask: bool,
) -> jax.Array:
    fixed = {t: jnp.full_like(base_weak, t) for t in _WEAK_TEMPERATURES}
    confident, classes = _low_confidence(weak)
    chosen_examples: jax.Array | None = None
    chosen_classes: jax.Array | None = None
    if true_mask:
        example_factor = class_factor = jnp.ones((), base_weak.dtype)
        chosen_examples, chosen_classes = confident, classes
    else:
        example_factor, class_factor = _mask_means(weak, confident, classes)

    total = jnp.zeros((), base_weak.dtype)
    for tau in (base_weak, *fixed.values()):
        softer = weak.over(tau, tau)
        total += example_factor * _mean_kd(weak_kd, tau, chosen_examples)
        total += class_factor * _between_classes(softer, chosen_classes)
        total += example_factor * _between_examples(softer, chosen_examples)
    for tau in (base_strong, *(fixed[t] for t in _STRONG_TEMPERATURES)):
        total += _mean_kd(strong_kd, tau, None)
    for t in _AGAIN_ON_WEAK:
        total += _mean_kd(weak_kd, fixed[t], None)
    return total


def class_correlation(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """MLKD's class level, a scalar for the whole batch: distance of the classes' Gram matrices.

    `L = |P^T P - Q^T Q|^2 / K` (Frobenius), P and Q the B x K matrices of softened teacher and student
    probabilities.  There is no factor T^2.  It takes memory for K x K numbers.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[0.0, 9.0], [9.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 0.0]])
    >>> print(losses.class_correlation(student, teacher, temperature=0.1))
    0.5

    Source: Jin et al. 2023, "Multi-Level Logit Distillation" (CVPR), the authors' code.
    """
    x, _ = softened(prepare_batch(student, teacher, axis, where), temperature, standardize)
    return on_auto_axes(_between_classes, x)


def batch_correlation(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """MLKD's batch level, a scalar for the whole batch: distance of the examples' Gram matrices.

    `L = |P P^T - Q Q^T|^2 / B` (Frobenius), P and Q the B x K matrices of softened teacher and student
    probabilities.  There is no factor T^2.  It takes memory for B x B numbers.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[0.0, 9.0], [9.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 0.0]])
    >>> print(losses.batch_correlation(student, teacher, temperature=0.1))
    0.5

    Source: Jin et al. 2023, "Multi-Level Logit Distillation" (CVPR), the authors' code.
    """
    x, _ = softened(prepare_batch(student, teacher, axis, where, axis_name), temperature, standardize)
    return on_auto_axes(_between_examples, x) if axis_name is None else _between_examples(x)


def skd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    standardize: bool = False,
    ridge: float = 0.1,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Streamlined KD, a scalar for the whole batch: KD, and a Mahalanobis distance of the batch's cosines.

    `L = m1 KD_T + m2 mean_i sqrt(d_i^T (cov(D) + ridge I)^-1 d_i)`, with `D = (S S^T - U U^T) / K`, S and U
    the B x K logits of student and teacher, each row divided by its norm, d_i the rows of D, and cov(D) the
    B x B covariance of its columns over the batch (division by B - 1).  KD_T is the batch mean of `kd`.  As
    in `mlkd`, and in the authors' code, the masks of confident examples and classes act as their means: m1
    and m2 are the fractions of examples and of classes whose teacher confidence is at most the batch's
    median, both about 1/2.  It takes memory for B x B numbers.

    Args:
      ridge: added to the variances; positive.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    >>> teacher = jnp.array([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0]])
    >>> print(f"{losses.skd(student, teacher):.3f}")
    0.426

    Source: the authors' code of "Streamlined Knowledge Distillation" (CVPR 2026).
    """
    x = prepare_batch(student, teacher, axis, where)
    _logits.positive("ridge", ridge)
    x = x.standardized() if standardize else x
    tau = x.temperature(temperature, standardize)
    return on_auto_axes(functools.partial(_skd, ridge=ridge), x, tau)


def _skd(x: Pair, tau: jax.Array, *, ridge: float) -> jax.Array:
    of_examples, of_classes = _mask_means(x, *_low_confidence(x))
    return of_examples * _mean_kd(x, tau, None) + of_classes * _mean_distance(x, ridge)


def _mean_distance(x: Pair, ridge: float) -> jax.Array:
    keep = None if x.examples is None else x.examples.ravel()
    of_student, of_teacher = (_cosines(logits) for logits in (x.student, x.teacher))
    of_batch = _count(x.examples, x.student[..., 0])
    number = _count(_classes_in_use(x), jnp.zeros_like(x.student, shape=x.student.shape[-1:]))
    # Rows and columns of masked examples are 0, so that they change neither a row nor its variances.
    rows = (of_student - of_teacher) / number
    centred = rows - jnp.sum(rows, axis=0, keepdims=True) / of_batch
    centred = centred if keep is None else jnp.where(keep[:, None], centred, 0.0)
    products = jnp.matmul(centred.T, centred, precision="highest")
    covariance = products / jnp.maximum(of_batch - 1, 1) + ridge * jnp.eye(len(rows), dtype=rows.dtype)
    solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(covariance), rows.T)
    squared = jnp.sum(rows * solved.T, axis=-1)
    # What rounding alone makes of equal cosines has distance 0, and a gradient of 0; NaN stays.
    rounding = jnp.square(4 * jnp.finfo(rows.dtype).eps / number) * of_batch / ridge
    equal = squared <= rounding
    return jnp.sum(jnp.where(equal, 0.0, jnp.sqrt(jnp.where(equal, 1.0, squared)))) / of_batch


def _cosines(logits: jax.Array) -> jax.Array:
    """The cosines of all pairs of examples, `[B, B]`; 0 for logits that are all 0."""
    rows = logits.reshape(-1, logits.shape[-1])
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, keepdims=True))
    rows = unit(rows / jnp.where(largest == 0, 1.0, largest))  # squares of the largest logits would overflow
    return jnp.matmul(rows, rows.T, precision="highest")


def _probabilities(x: Pair) -> tuple[jax.Array, jax.Array]:
    """Teacher's and student's probabilities, `[..., K]`; the rows of masked examples are 0."""
    p, q = x.probabilities()
    if x.examples is None:
        return p, q
    keep = x.examples[..., None]
    return jnp.where(keep, p, 0.0), jnp.where(keep, q, 0.0)


def _mean_kd(x: Pair, tau: jax.Array, chosen: jax.Array | None) -> jax.Array:
    """Batch mean of `kd`; examples that are not chosen count as 0."""
    loss = x.masked(tau[..., 0] ** 2 * x.divergence(tau, tau))
    return jnp.sum(_chosen(loss, chosen)) / _count(x.examples, loss)


def _between_classes(x: Pair, chosen: jax.Array | None = None) -> jax.Array:
    """Squared distance of the classes' Gram matrices over K; rows that are not chosen count as 0."""
    p, q = _probabilities(x)
    examples = tuple(range(p.ndim - 1))
    of_teacher, of_student = (jnp.tensordot(a, a, (examples, examples), precision="highest") for a in (p, q))
    rows = jnp.sum((of_teacher - of_student) ** 2, axis=1)
    return jnp.sum(_chosen(rows, chosen)) / _count(_classes_in_use(x), rows)


def _between_examples(x: Pair, chosen: jax.Array | None = None) -> jax.Array:
    """Squared distance of the examples' Gram matrices over B; rows that are not chosen count as 0."""
    p, q = _probabilities(x)
    products = (jnp.tensordot(a, a, (-1, -1), precision="highest") for a in (p, q))
    of_teacher, of_student = (a if x.axis_name is None else jax.lax.psum(a, x.axis_name) for a in products)
    rows = jnp.sum((of_teacher - of_student) ** 2, axis=tuple(range(p.ndim - 1, 2 * (p.ndim - 1))))
    return jnp.sum(_chosen(rows, chosen)) / _count(x.examples, rows)


def _chosen(values: jax.Array, chosen: jax.Array | None) -> jax.Array:
    return values if chosen is None else jnp.where(chosen, values, 0.0)


def _low_confidence(x: Pair) -> tuple[jax.Array, jax.Array]:
    """Masks of the examples and of the classes with at most the median teacher confidence."""
    p, _ = _probabilities(x)
    of_classes = jnp.sum(p, axis=tuple(range(p.ndim - 1)))
    return (
        _at_most_median(jnp.max(p, axis=-1), x.examples),
        _at_most_median(of_classes, _classes_in_use(x)),
    )


def _at_most_median(values: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Mask of the kept values that do not exceed their median (mean of the middle two)."""
    if keep is None:
        return values <= jnp.median(values) if values.size else values > 0
    ordered = jnp.sort(jnp.where(keep, values, jnp.inf), axis=None)
    count = jnp.maximum(jnp.sum(keep), 1)
    low, high = ordered[(count - 1) // 2], ordered[count // 2]
    return keep & (values <= 0.5 * (low + high))


def _classes_in_use(x: Pair) -> jax.Array | None:
    return None if x.classes is None else jnp.any(x.classes, axis=tuple(range(x.classes.ndim - 1)))


def _count(keep: jax.Array | None, like: jax.Array) -> jax.Array:
    """The number of kept entries, at least 1; without a mask, all entries of `like`."""
    count = like.size if keep is None else jnp.sum(keep)
    return jnp.maximum(count, 1).astype(like.dtype)


def _mask_means(x: Pair, examples: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The means of a mask of the examples and of one of the classes, over those that count."""

    def fraction(chosen: jax.Array, keep: jax.Array | None) -> jax.Array:
        of = chosen.astype(jnp.result_type(float))
        return (jnp.sum(of) / _count(keep, of)).astype(x.student.dtype)

    return fraction(examples, x.examples), fraction(classes, _classes_in_use(x))
