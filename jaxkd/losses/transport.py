"""Losses that transport probability between related classes.

For what all losses share, see `jaxkd.losses`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import logits as _logits
from jaxkd import temperature as _temperature
from jaxkd.losses._inputs import Pair, prepare_labelled

_EPS = 1e-8  # added to costs and to the divisors, as in the authors' code


def wkd(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    cost: ArrayLike,
    *,
    temperature: _temperature.Temperature = 4.0,
    weight: float = 30.0,
    regularizer: float = 0.05,
    iterations: int = 10,
    ignore_index: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """WKD-L: the cost of moving the student's probability to the teacher's, between related classes.

    `L_i = -p_y log q_y + g W_i`, with y the label and p and q at temperature 1.  W is the entropic transport
    cost `sum_kl P_kl c_kl` between the softmaxes at T over the classes other than y, with
    `P = diag(u) G diag(v)`, `G = exp(-c / r)`, after some Sinkhorn iterations from `u = 1 / (K - 1)`.  There
    is no factor T^2.  It takes memory for K x K numbers per example.

    Args:
      labels: target classes, as in `dkd`.
      cost: c, what it costs to move from class to class, floating, shape `[K, K]`; negative costs count as 0.
        The authors take `1 - exp(-(1 - cosine))` of the rows of the teacher's classifier, or of a kernel
        alignment of its features.
      weight: g.
      regularizer: r of the transport, positive: the smaller, the closer to the unregularised cost.
      iterations: Sinkhorn iterations.
      ignore_index: as in `dkd`.
      where: a mask of examples; masked classes are refused.

    Raises:
      ValueError: `cost` is not `[K, K]`, there is a mask of classes, or an option is out of range.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 2.0]])
    >>> loss = losses.wkd(student, teacher, jnp.array([0]), 1 - jnp.eye(3), weight=1.0)
    >>> print(f"{loss[0]:.3f}")
    1.387

    Source: Lv et al. 2024 (arXiv 2412.08139), the authors' code; their cost of the target class is left out.
    """
    x, is_label = prepare_labelled(student, teacher, labels, axis, where, ignore_index)
    _logits.positive("regularizer", regularizer)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    num_classes = x.student.shape[-1]
    c = jax.lax.stop_gradient(jnp.asarray(cost, x.student.dtype))
    if c.shape != (num_classes, num_classes):
        raise ValueError(f"cost must have shape {(num_classes, num_classes)}, got {c.shape}")
    if x.classes is not None:
        raise ValueError("wkd takes a mask of examples alone; slice away the classes and their costs instead")
    log_p, log_q = x.log_softmax()
    target = -jnp.sum(jnp.where(is_label, jnp.exp(log_p) * log_q, 0.0), axis=-1)
    tau = x.temperature(temperature)
    others = x.over(tau, tau)._replace(classes=~is_label)
    return x.masked(target + weight * _transport(others, jnp.maximum(c, 0) + _EPS, regularizer, iterations))


def _transport(x: Pair, cost: jax.Array, regularizer: float, iterations: int) -> jax.Array:
    """The entropic transport cost from student to teacher over the classes that count."""
    log_p, log_q = x.log_softmax()
    assert x.classes is not None
    kept = x.classes[..., :, None] & x.classes[..., None, :]
    kernel = jnp.where(kept, jnp.exp(-cost / regularizer), 0.0)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    u = jnp.where(x.classes, 1.0 / (p.shape[-1] - 1), 0.0).astype(p.dtype)
    v = jnp.zeros_like(u)
    einsum = functools.partial(jnp.einsum, precision="highest")
    for _ in range(iterations):
        v = p / (einsum("...kl,...k->...l", kernel, u) + _EPS)
        u = q / (einsum("...kl,...l->...k", kernel, v) + _EPS)
    return einsum("...k,...kl,...l->...", u, kernel * cost, v)
