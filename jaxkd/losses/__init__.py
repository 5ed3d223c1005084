"""Distillation losses: pure functions, arrays in, one value per example out, in float32 at least.

Nothing here knows of networks, optimisers or data.  Only jax, `jaxkd.logits` and `jaxkd.temperature` may
be imported.
"""

from jaxkd.losses.logit import kd

__all__ = ["kd"]
