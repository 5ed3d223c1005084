"""VGG with batch norm (Simonyan & Zisserman 2014, arXiv 1409.1556): vgg8, vgg11, vgg13, vgg16, vgg19.

Five blocks of 3x3 convolutions with biases, and a single linear layer at the end.  Structure and names are
those of RepDistiller, where `vgg8` also means the network with batch norm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from jaxkd.models.initializers import fan_out_normal, normal, zeros
from jaxkd.models.layers import Classifier, Outputs, relu

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(Classifier):
    """A VGG for small images.

    Blocks are followed by 2x2 max-pools, but for the last two; the fourth is pooled only in images of height
    64, as in the source.

    Attributes:
      convolutions: how many in each of the five blocks.
    """

    convolutions: tuple[int, int, int, int, int]

    smallest_image: ClassVar[int] = 8

    @property
    def preact_norms(self) -> Mapping[str, tuple[str, ...]]:
        """The last batch norm of each block but the first."""
        return {
            f"stage{block}": (f"block{block}_{3 * self.convolutions[block] - 2}",)
            for block in range(1, len(self.convolutions))
        }

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, where: jax.Array | None = None) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`; `where` `[B]` marks the examples that count."""
        layers, x = self._begin(images, train, fan_out_normal)
        pooled = 4 if images.shape[1] == 64 else 3
        features = {}
        for block, (width, convolutions) in enumerate(zip(_WIDTHS, self.convolutions, strict=True)):
            for index in range(convolutions):
                # In the source's sequence every convolution, batch norm and ReLU has a number.
                x = layers.conv(width, 3, use_bias=True, name=f"block{block}_{3 * index}")(x)
                before = layers.norm(f"block{block}_{3 * index + 1}")(x, where)
                x = relu(before)
            if block == 0:
                features["stem"] = x
            else:
                features |= {f"stage{block}_preact": before, f"stage{block}": x}
            if block < pooled:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return self._end(features, x, "classifier", kernel_init=normal(0.01), bias_init=zeros)


VGGS: dict[str, Callable[..., VGG]] = {
    "vgg8": functools.partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": functools.partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": functools.partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": functools.partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": functools.partial(VGG, (2, 2, 4, 4, 4)),
}
