"""ShuffleNets for small images, as in RepDistiller: ShuffleV1 (three groups) and ShuffleV2 (of width 1).

Zhang et al. 2017, arXiv 1707.01083; Ma et al. 2018, arXiv 1807.11164.  Both begin with a 1x1 convolution to
24 channels at full resolution, and halve the resolution in the first block of each stage.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.initializers import fan_in_uniform
from jaxkd.models.layers import Classifier, Layers, Outputs, relu

_STEM = 24


def shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Deals the channels out again: the first of each group, the second of each group, and so on.

    >>> shuffle(jnp.arange(6).reshape(1, 1, 1, 6), groups=2).ravel().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    *rest, channels = x.shape
    return jnp.swapaxes(x.reshape(*rest, groups, channels // groups), -1, -2).reshape(x.shape)


class BottleneckV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or beside it at stride 2."""

    width: int
    stride: int
    groups: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        """Returns `width` channels before the last ReLU."""
        conv, norm = self.layers.conv, self.layers.norm
        out = self.width if self.stride == 1 else self.width - x.shape[-1]
        hidden = out // 4
        groups = 1 if x.shape[-1] == _STEM else self.groups
        y = conv(hidden, 1, groups=groups, name="conv1")(x)
        y = relu(norm("bn1")(y, where))
        y = conv(hidden, 3, stride=self.stride, groups=hidden, name="conv2")(shuffle(y, groups))
        y = relu(norm("bn2")(y, where))
        y = conv(out, 1, groups=self.groups, name="conv3")(y)
        y = norm("bn3")(y, where)
        if self.stride == 1:
            return y + x
        shortcut = nn.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return jnp.concatenate([y, shortcut], axis=-1)


class ShuffleV1(Classifier):
    """ShuffleNet with three groups."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, where: jax.Array | None = None) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`; `where` `[B]` marks the examples that count."""
        layers, x = self._begin(images, train, fan_in_uniform)
        x = relu(layers.norm("bn1")(layers.conv(_STEM, 1, name="conv1")(x), where))
        features = {"stem": x}
        for stage, (width, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            for index in range(blocks):
                stride = 2 if index == 0 else 1
                before = BottleneckV1(width, stride, 3, layers, name=f"layer{stage}_{index}")(x, where)
                x = relu(before)
            features |= {f"stage{stage}_preact": before, f"stage{stage}": x}
        return self._end(features, x, "linear")


class DownBlockV2(nn.Module):
    """Two branches of stride 2, each half of the output."""

    width: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        """Returns `width` shuffled channels."""
        conv, norm = self.layers.conv, self.layers.norm
        half, channels = self.width // 2, x.shape[-1]
        left = norm("bn1")(conv(channels, 3, stride=2, groups=channels, name="conv1")(x), where)
        left = relu(norm("bn2")(conv(half, 1, name="conv2")(left), where))
        right = relu(norm("bn3")(conv(half, 1, name="conv3")(x), where))
        right = norm("bn4")(conv(half, 3, stride=2, groups=half, name="conv4")(right), where)
        right = relu(norm("bn5")(conv(half, 1, name="conv5")(right), where))
        return shuffle(jnp.concatenate([left, right], axis=-1), 2)


class BasicBlockV2(nn.Module):
    """Half of the channels pass through, the other half take a 1x1, a depthwise 3x3 and a 1x1 convolution."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the shuffled channels; and before the last ReLU and the shuffle."""
        conv, norm = self.layers.conv, self.layers.norm
        half = x.shape[-1] // 2
        passed, y = jnp.split(x, 2, axis=-1)
        y = relu(norm("bn1")(conv(half, 1, name="conv1")(y), where))
        y = norm("bn2")(conv(half, 3, groups=half, name="conv2")(y), where)
        y = norm("bn3")(conv(half, 1, name="conv3")(y), where)
        before = jnp.concatenate([passed, y], axis=-1)
        return shuffle(jnp.concatenate([passed, relu(y)], axis=-1), 2), before


class ShuffleV2(Classifier):
    """ShuffleNet V2 of width 1."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, where: jax.Array | None = None) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`; `where` `[B]` marks the examples that count."""
        layers, x = self._begin(images, train, fan_in_uniform)
        x = relu(layers.norm("bn1")(layers.conv(_STEM, 1, name="conv1")(x), where))
        features = {"stem": x}
        for stage, (width, blocks) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            x = DownBlockV2(width, layers, name=f"layer{stage}_0")(x, where)
            for index in range(1, blocks + 1):
                x, before = BasicBlockV2(layers, name=f"layer{stage}_{index}")(x, where)
            features |= {f"stage{stage}_preact": before, f"stage{stage}": x}
        x = relu(layers.norm("bn2")(layers.conv(1024, 1, name="conv2")(x), where))
        return self._end(features, x, "linear")


SHUFFLENETS: dict[str, Callable[..., Classifier]] = {"ShuffleV1": ShuffleV1, "ShuffleV2": ShuffleV2}
