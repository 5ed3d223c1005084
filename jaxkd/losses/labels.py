"""What labels are for beside a loss: the cross-entropy, and the repair of a teacher that is wrong.

For what all losses share, see `jaxkd.losses`.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import _classes
from jaxkd import logits as _logits
from jaxkd._classes import AxisName
from jaxkd.losses._inputs import prepare_labelled


def cross_entropy(
    student: ArrayLike,
    labels: ArrayLike,
    *,
    ignore_index: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Cross-entropy with the labels, at temperature 1.

    `L_i = -log softmax(s_i)_y`, y the label.

    Args:
      labels: target classes, as in `dkd`.
      ignore_index: examples with this label are masked, for example -100.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, labels = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), jnp.array([2, -100])
    >>> print(losses.cross_entropy(student, labels, ignore_index=-100).round(2))
    [0.41 0.  ]
    """
    x, is_target = prepare_labelled(student, student, labels, axis, where, ignore_index, axis_name)
    logits = x.student if x.classes is None else jnp.where(x.classes, x.student, -jnp.inf)
    of_label = x.total(jnp.where(is_target, logits, 0.0))
    return x.masked(_classes.log_sum_exp(logits, axis_name) - of_label)


def repair(
    teacher: ArrayLike,
    labels: ArrayLike,
    *,
    how: Literal["swap", "sort"] = "swap",
    ignore_index: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The teacher's logits with the label's made the largest: call it before any loss.

    With `how="swap"` the largest logit and the label's change places.  With `how="sort"` the label gets the
    largest logit, and every class that was above it gets the next lower one.  Where the label is the largest
    nothing changes.

    Args:
      teacher: logits, floating, shape `[..., K]`.
      labels: target classes, as in `dkd`.
      how: "swap" or "sort".
      ignore_index: examples with this label are left unchanged.
      where: examples and classes that are masked stay as they are.

    Returns:
      Logits of the shape of `teacher`, without a gradient; NaN where, under `jit`, the label is out of range.

    Raises:
      TypeError, ValueError: as `dkd`; `how` is another word.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> teacher, labels = jnp.array([[4.0, 3.0, 2.0, 1.0]]), jnp.array([2])
    >>> print(losses.repair(teacher, labels), losses.repair(teacher, labels, how="sort"))
    [[2. 3. 4. 1.]] [[3. 2. 4. 1.]]

    Source: SLD (arXiv 2504.20108) for "swap", SortKD (arXiv 2508.16544) for "sort".
    """
    if how not in ("swap", "sort"):
        raise ValueError(f'how must be "swap" or "sort", got {how!r}')
    _logits.as_logits("teacher", teacher)
    x, is_label = prepare_labelled(teacher, teacher, labels, axis, where, ignore_index)
    counts = jnp.ones_like(is_label) if x.classes is None else x.classes
    t = jnp.where(counts, x.teacher, -jnp.inf)
    of_label = x.total(jnp.where(is_label, x.teacher, 0.0))[..., None]
    if how == "swap":
        is_largest = _classes.is_first_largest(t)
        repaired = jnp.where(is_label, _classes.top(t), jnp.where(is_largest, of_label, t))
    else:
        order = jnp.argsort(-t, axis=-1)
        rank = jnp.argsort(order, axis=-1)
        of_label_rank = x.total(jnp.where(is_label, rank, 0))[..., None]
        rank = jnp.where(is_label, 0, jnp.where(rank < of_label_rank, rank + 1, rank))
        repaired = jnp.take_along_axis(jnp.take_along_axis(t, order, axis=-1), rank, axis=-1)
    if x.weights is not None:  # NaN for a wrong label
        repaired = repaired + 0.0 * x.weights[..., None]
    kept = counts if x.examples is None else counts & x.examples[..., None]
    kept = kept & jnp.any(is_label & counts, axis=-1, keepdims=True) | jnp.isnan(repaired)
    original = jnp.moveaxis(jax.lax.stop_gradient(jnp.asarray(teacher)).astype(t.dtype), axis, -1)
    return jnp.moveaxis(jnp.where(kept, repaired, original), -1, axis)
