"""ReviewKD: the student's stages, fused from the deepest to the shallowest, predict the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.methods.base import NOT_NEGATIVE, Inputs, Terms
from jaxkd.methods.feature import Feature, batch_norm, convolution, networks, pooled, stages
from jaxkd.models.initializers import uniform
from jaxkd.models.layers import widened

_WIDEST = 512  # maximum number of channels for fusing stages


class ReviewKD(Feature):
    """ReviewKD: each stage of the student, fused with all deeper ones, predicts a stage of the teacher.

    The pooled features count as the deepest stage, of one pixel.  Stage i predicts the teacher's stage i,
    before its activation, at the teacher's size.  Of a teacher with more stages the deepest are left out, but
    for the pooled features; with fewer, the student's deepest predict nothing, and are fused into the others.

    Attributes:
      weight: weight of the hierarchical context loss, summed over the stages.
      ce_weight: weight of the cross-entropy with the labels.
      warmup_epochs: number of epochs in which the weight grows: min(epoch / warmup_epochs, 1).
    """

    warmup_epochs: int = 20

    reads: ClassVar = ("preacts", "pooled")
    learns: ClassVar = "fusion modules"
    ranges: ClassVar = {"warmup_epochs": NOT_NEGATIVE}

    @nn.compact
    def __call__(self, x: Inputs) -> Terms:
        """See `Method`."""
        student, teacher = networks(x)
        seen = [*stages(*student).values(), _as_map(pooled(*student))]
        targets = list(stages(*teacher, before_activation=True).values())[: len(seen) - 1]
        targets.append(_as_map(pooled(*teacher)))
        width = min(_WIDEST, seen[-1].shape[-1])
        fused, total = None, jnp.zeros(())
        for depth, own in enumerate(reversed(seen)):
            place = len(seen) - 1 - depth
            target = targets[place] if place < len(targets) else None
            fusion = Fusion(width, None if target is None else target.shape[1:], name=f"abfs_{depth}")
            prediction, fused = fusion(x, widened(own), fused)
            if target is not None:
                total += losses.hcl(prediction, target)
        weight: jax.typing.ArrayLike = 1.0
        if self.warmup_epochs:
            weight = jnp.minimum(x.epoch / self.warmup_epochs, 1.0)
        return self._terms(x, review=(total, weight))


class Fusion(nn.Module):
    """Attention-based fusion of a stage with what was fused of the deeper ones.

    Attributes:
      width: of the fused maps.
      target: height, width and channels of the prediction; None for no prediction.
    """

    width: int
    target: tuple[int, ...] | None

    @nn.compact
    def __call__(self, x: Inputs, y: jax.Array, deeper: jax.Array | None) -> tuple[Any, jax.Array]:
        """Returns the prediction, and the fused map at its size."""
        y = self._normalized(x, y, self.width, 1, "conv1")
        if deeper is not None:
            deeper = nearest(deeper, y.shape[1:3])
            both = jnp.concatenate([y, deeper], axis=-1)
            shares = nn.sigmoid(convolution(2, (1, 1), inputs=2 * self.width, name="att_conv_0")(both))
            y = y * shares[..., :1] + deeper * shares[..., 1:]
        if self.target is None:
            return None, y
        *size, channels = self.target
        y = nearest(y, tuple(size))
        return self._normalized(x, y, channels, 3, "conv2"), y

    def _normalized(self, x: Inputs, y: jax.Array, width: int, size: int, name: str) -> jax.Array:
        y = convolution(
            width,
            (size, size),
            inputs=y.shape[-1],
            padding=size // 2,
            use_bias=False,
            kernel_init=_kaiming_uniform,
            name=f"{name}_0",
        )(y)
        return batch_norm(x, y, name=f"{name}_1")(y, x.where)


def nearest(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Maps `[B, H, W, C]` in another size: pixel i of m is pixel `floor(i n / m)` of n, as in torch.

    >>> nearest(jnp.arange(2.0).reshape(1, 2, 1, 1), (3, 1)).ravel().tolist()
    [0.0, 0.0, 1.0]
    """
    for axis, m in enumerate(size, start=1):
        n = x.shape[axis]
        # A gather is slow, and so is its gradient.
        whole = m % n == 0
        x = jnp.repeat(x, m // n, axis) if whole else jnp.take(x, np.arange(m) * n // m, axis)
    return x


def _as_map(vector: jax.Array) -> jax.Array:
    """Pooled features as a map of one pixel."""
    return vector[:, None, None]


def _kaiming_uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Torch's `kaiming_uniform_` with a = 1: U(-b, b), b = sqrt(3 / fan_in)."""
    return uniform(math.sqrt(3 / math.prod(shape[:-1])))(key, shape, dtype)
