"""Wide ResNets (Zagoruyko & Komodakis 2016, arXiv 1605.07146): wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2.

Batch norm and ReLU come before the convolutions, so a stage's output is a raw sum, and its pre-activation
feature is what the next batch norm makes of it.  Structure and names are those of RepDistiller; no dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from jaxkd.models.initializers import fan_out_normal, zeros
from jaxkd.models.layers import Classifier, Layers, Outputs, relu


class Block(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3, plus the input, or a 1x1 convolution of its activation."""

    width: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the sum, and the input after the first batch norm."""
        conv, norm = self.layers.conv, self.layers.norm
        normalised = norm("bn1")(x, where)
        active = relu(normalised)
        y = conv(self.width, 3, stride=self.stride, name="conv1")(active)
        y = relu(norm("bn2")(y, where))
        y = conv(self.width, 3, name="conv2")(y)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, stride=self.stride, name="convShortcut")(active)
        return x + y, normalised


class Stage(nn.Module):
    """Blocks of one width; the first may have a stride."""

    num_blocks: int
    width: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the last sum, and the input after the first batch norm."""
        x, normalised = Block(self.width, self.stride, self.layers, name="layer_0")(x, where)
        for index in range(1, self.num_blocks):
            x, _ = Block(self.width, 1, self.layers, name=f"layer_{index}")(x, where)
        return x, normalised


class WideResNet(Classifier):
    """A wide ResNet for small images.

    Attributes:
      depth: 6 n + 4, n blocks in each of the three stages.
      widening: factor of the stages' widths 16, 32 and 64.
    """

    depth: int
    widening: int

    @property
    def preact_norms(self) -> Mapping[str, tuple[str, ...]]:
        """The first batch norm after each stage."""
        return {
            "stage1": ("block2", "layer_0", "bn1"),
            "stage2": ("block3", "layer_0", "bn1"),
            "stage3": ("bn1",),
        }

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, where: jax.Array | None = None) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`; `where` `[B]` marks the examples that count."""
        layers, x = self._begin(images, train, fan_out_normal)
        x = layers.conv(16, 3, name="conv1")(x)
        features = {"stem": x}
        for stage, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            block = Stage((self.depth - 4) // 6, width * self.widening, stride, layers, name=f"block{stage}")
            x, normalised = block(x, where)
            if stage > 1:
                features[f"stage{stage - 1}_preact"] = normalised
            features[f"stage{stage}"] = x
        x = features["stage3_preact"] = layers.norm("bn1")(x, where)
        return self._end(features, relu(x), "fc", bias_init=zeros)


WIDE_RESNETS: dict[str, Callable[..., WideResNet]] = {
    f"wrn_{depth}_{widening}": functools.partial(WideResNet, depth, widening)
    for depth in (16, 40)
    for widening in (1, 2)
}
