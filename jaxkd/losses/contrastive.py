"""Contrastive losses: one positive against many negatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import logits as _logits
from jaxkd.losses._inputs import boolean_mask

_EPS = 1e-7


def nce(scores: ArrayLike, *, num_examples: int, where: ArrayLike | None = None) -> jax.Array:
    """Noise-contrastive estimation: tells the positive from negatives that were drawn evenly, `[B]`.

    `L_i = -log(h(P_i0)) - sum_k log(1 - h(P_ik))`, with `h(P) = P / (P + m / n)`, m negatives of n examples.

    Args:
      scores: estimated probabilities P, positive, `[B, 1 + m]`: that of the positive first.
      num_examples: n, how many examples the negatives are drawn from.
      where: which scores count, bool `[B, 1 + m]`; m is then the number of an example's negatives that do.

    Raises:
      TypeError: the scores are not floating, or the mask is not boolean.
      ValueError: the shapes do not fit.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> print(f"{losses.nce(jnp.array([[0.02, 0.01, 0.01]]), num_examples=100)[0]:.3f}")
    1.504

    Source: Tian et al. 2020 (arXiv 1910.10699), section 3.2, as in the authors' code, which adds 1e-7 to the
    divisors.
    """
    p = jnp.asarray(scores)
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise TypeError(f"scores must be floating, got dtype {p.dtype}")
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"scores must be [B, 1 + m], a positive and at least one negative, got {p.shape}")
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32))
    keep = jnp.ones(p.shape, bool) if where is None else boolean_mask(where)
    if keep.shape != p.shape:
        raise ValueError(f"where must have the shape of the scores, {p.shape}, got {keep.shape}")
    _logits.positive("num_examples", num_examples)
    p = jnp.where(keep, p, 1.0)  # else a score that does not count could make the gradient NaN
    noise = jnp.sum(keep[:, 1:], axis=1, keepdims=True).astype(p.dtype) / num_examples
    likely = p[:, :1] / (p[:, :1] + noise + _EPS)
    unlikely = noise / (p[:, 1:] + noise + _EPS)  # 0 without a negative
    ratios = jnp.where(keep, jnp.concatenate([likely, unlikely], axis=1), 1.0)
    return -jnp.sum(jnp.log(ratios), axis=1)
