"""Distillation losses: pure functions, arrays in, one value per example out, in float32 at least.

Nothing here knows of networks, optimisers or data.  Only jax, `jaxkd.logits` and `jaxkd.temperature` may
be imported.
"""

from jaxkd.losses.decoupled import dkd, normdkd
from jaxkd.losses.from_hidden import kd_from_hidden
from jaxkd.losses.logit import (
    correlation,
    dtkd,
    jensen_shannon,
    kd,
    mse,
    normkd,
    reverse_kl,
    soft_cross_entropy,
    ttm,
    wttm,
)
from jaxkd.losses.multi_level import batch_correlation, class_correlation, mlkd
from jaxkd.losses.relational import dist, dist_inter, dist_intra

__all__ = [
    "batch_correlation",
    "class_correlation",
    "correlation",
    "dist",
    "dist_inter",
    "dist_intra",
    "dkd",
    "dtkd",
    "jensen_shannon",
    "kd",
    "kd_from_hidden",
    "mlkd",
    "mse",
    "normdkd",
    "normkd",
    "reverse_kl",
    "soft_cross_entropy",
    "ttm",
    "wttm",
]
