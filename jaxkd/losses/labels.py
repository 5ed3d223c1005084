"""The cross-entropy with labels: beside every distillation loss, and with the same options.

For what all losses share, see `jaxkd.losses`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import _classes
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
      ignore_index: a label whose examples are masked, such as -100.

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
