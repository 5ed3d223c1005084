"""MobileNetV2 of half width for small images (Sandler et al. 2018, arXiv 1801.04381), as in RepDistiller.

ReLU in place of ReLU6, an expansion even where its factor is 1, and a first convolution of stride 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from jaxkd.models.initializers import fan_out_normal, normal, zeros
from jaxkd.models.layers import Classifier, Layers, Outputs, relu

# Expansion, width, number of blocks and first stride of each group; the widths are halved already.
_GROUPS = (
    (1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1),
)  # fmt: skip
_STAGE_ENDS = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}
_LAST_WIDTH = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; plus the input if the shape is the same."""

    width: int
    stride: int
    expansion: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        """Returns the sum; no activation follows it."""
        conv, norm = self.layers.conv, self.layers.norm
        hidden = x.shape[-1] * self.expansion
        y = conv(hidden, 1, name="conv_0")(x)
        y = relu(norm("conv_1")(y, where))
        y = conv(hidden, 3, stride=self.stride, groups=hidden, name="conv_3")(y)
        y = relu(norm("conv_4")(y, where))
        y = conv(self.width, 1, name="conv_6")(y)
        y = norm("conv_7")(y, where)
        return x + y if y.shape == x.shape else y


class MobileNetV2(Classifier):
    """MobileNetV2 with half the width, but for the last convolution's."""

    @property
    def preact_norms(self) -> Mapping[str, tuple[str, ...]]:
        """The last batch norm of each stage; the block's input may be added to it."""
        return {
            stage: (f"blocks_{group}_{_GROUPS[group][2] - 1}", "conv_7")
            for group, stage in _STAGE_ENDS.items()
        }

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, where: jax.Array | None = None) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`; `where` `[B]` marks the examples that count."""
        layers, x = self._begin(images, train, fan_out_normal)
        x = layers.conv(16, 3, stride=2, name="conv1_0")(x)
        x = relu(layers.norm("conv1_1")(x, where))
        features = {"stem": x}
        for group, (expansion, width, blocks, first_stride) in enumerate(_GROUPS):
            for index in range(blocks):
                stride = first_stride if index == 0 else 1
                x = InvertedResidual(width, stride, expansion, layers, name=f"blocks_{group}_{index}")(
                    x, where
                )
            if stage := _STAGE_ENDS.get(group):
                # No activation follows a block: its feature and its pre-activation feature are the same.
                features[f"{stage}_preact"] = features[stage] = x
        x = layers.conv(_LAST_WIDTH, 1, name="conv2_0")(x)
        x = relu(layers.norm("conv2_1")(x, where))
        return self._end(features, x, "classifier_0", kernel_init=normal(0.01), bias_init=zeros)


MOBILENETS: dict[str, Callable[..., MobileNetV2]] = {"MobileNetV2": MobileNetV2}
