"""Residual networks (He et al. 2015, arXiv 1512.03385), for small images and for ImageNet.

`resnet8` ... `resnet110`, `resnet8x4` and `resnet32x4` are the three-stage networks of section 4.2 as
RepDistiller has them, `ResNet50` is its bottleneck network for small images, and `imagenet_resnet18`, `34`
and `50` have torchvision's structure and names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.initializers import fan_out_normal
from jaxkd.models.layers import Classifier, Layers, Outputs, relu


class _Block(nn.Module):
    """What both blocks have: attributes and the shortcut.

    Attributes:
      width: channels of the 3x3 convolutions; the block's output has `expansion` times as many.
      stride: of the block.
      shortcut: where the shape changes: "B", a 1x1 convolution and batch norm; or "A", every `stride`-th
        pixel, and channels of zeros on both sides.
      projection: what the modules of option B are called.
      layers: makes the layers.
    """

    width: int
    stride: int
    shortcut: str
    projection: str
    layers: Layers

    expansion: ClassVar[int] = 1
    last_norm: ClassVar[str] = "bn2"

    def _shortcut(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        width = self.width * self.expansion
        if self.stride == 1 and x.shape[-1] == width:
            return x
        if self.shortcut == "A":
            missing = width - x.shape[-1]
            channels = (missing // 2, missing - missing // 2)
            return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels))
        x = self.layers.conv(width, 1, stride=self.stride, name=f"{self.projection}_0")(x)
        return self.layers.norm(f"{self.projection}_1")(x, where)


class BasicBlock(_Block):
    """conv3x3-BN-ReLU-conv3x3-BN, plus the shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        """Returns the sum before the last ReLU: the stage's pre-activation feature where it ends one."""
        conv, norm = self.layers.conv, self.layers.norm
        y = conv(self.width, 3, stride=self.stride, name="conv1")(x)
        y = relu(norm("bn1")(y, where))
        y = conv(self.width, 3, name="conv2")(y)
        y = norm("bn2")(y, where)
        return y + self._shortcut(x, where)


class Bottleneck(_Block):
    """conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN, plus the shortcut; the stride is the 3x3 convolution's."""

    expansion: ClassVar[int] = 4
    last_norm: ClassVar[str] = "bn3"

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        """Returns the sum before the last ReLU, as `BasicBlock` does."""
        conv, norm = self.layers.conv, self.layers.norm
        y = conv(self.width, 1, name="conv1")(x)
        y = relu(norm("bn1")(y, where))
        y = conv(self.width, 3, stride=self.stride, name="conv2")(y)
        y = relu(norm("bn2")(y, where))
        y = conv(self.width * self.expansion, 1, name="conv3")(y)
        y = norm("bn3")(y, where)
        return y + self._shortcut(x, where)


class ResNet(Classifier):
    """A ResNet of any size; the first block of each stage but the first halves the resolution.

    Attributes:
      block: `BasicBlock` or `Bottleneck`.
      blocks: how many in each stage.
      stem: channels of the first convolution.
      widths: of each stage's blocks.
      imagenet_stem: a 7x7 convolution of stride 2 and a max-pool, in place of a 3x3 convolution.
      shortcut: "B", projections; or "A", no parameters, as in the CIFAR experiments of He et al.
      projection: what the modules of the projections are called.
      head: what the last layer is called.
    """

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, ...]
    stem: int
    widths: tuple[int, ...]
    imagenet_stem: bool = False
    shortcut: str = "B"
    projection: str = "downsample"
    head: str = "fc"

    def __post_init__(self) -> None:
        if self.shortcut not in ("A", "B"):
            raise ValueError(
                f'shortcut must be "A" (no parameters) or "B" (projections), got {self.shortcut!r}'
            )
        super().__post_init__()

    @property
    def preact_norms(self) -> Mapping[str, tuple[str, ...]]:
        """The last batch norm of each stage; the shortcut is added to it."""
        return {
            f"stage{stage}": (f"layer{stage}_{blocks - 1}", self.block.last_norm)
            for stage, blocks in enumerate(self.blocks, start=1)
        }

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, where: jax.Array | None = None) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`; `where` `[B]` marks the examples that count."""
        layers, x = self._begin(images, train, fan_out_normal)
        size, stride = (7, 2) if self.imagenet_stem else (3, 1)
        x = layers.conv(self.stem, size, stride=stride, name="conv1")(x)
        x = relu(layers.norm("bn1")(x, where))
        features = {"stem": x}
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), start=1):
            for index in range(blocks):
                stride = 2 if stage > 1 and index == 0 else 1
                block = self.block(
                    width, stride, self.shortcut, self.projection, layers, name=f"layer{stage}_{index}"
                )
                before = block(x, where)
                x = relu(before)
            features |= {f"stage{stage}_preact": before, f"stage{stage}": x}
        return self._end(features, x, self.head)


def _cifar(depth: int, stem: int, widths: tuple[int, int, int]) -> Callable[..., ResNet]:
    """6 n + 2 layers: n basic blocks in each of three stages."""
    return functools.partial(ResNet, BasicBlock, ((depth - 2) // 6,) * 3, stem, widths)


_FOUR_STAGES = (64, 128, 256, 512)
_imagenet = functools.partial(ResNet, stem=64, widths=_FOUR_STAGES, imagenet_stem=True)

RESNETS: dict[str, Callable[..., ResNet]] = {
    **{f"resnet{depth}": _cifar(depth, 16, (16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _cifar(depth, 32, (64, 128, 256)) for depth in (8, 32)},
    "ResNet50": functools.partial(
        ResNet, Bottleneck, (3, 4, 6, 3), 64, _FOUR_STAGES, projection="shortcut", head="linear"
    ),
}
IMAGENET_RESNETS: dict[str, Callable[..., ResNet]] = {
    "imagenet_resnet18": functools.partial(_imagenet, BasicBlock, (2, 2, 2, 2)),
    "imagenet_resnet34": functools.partial(_imagenet, BasicBlock, (3, 4, 6, 3)),
    "imagenet_resnet50": functools.partial(_imagenet, Bottleneck, (3, 4, 6, 3)),
}
