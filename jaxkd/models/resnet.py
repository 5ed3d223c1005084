"""The CIFAR ResNets of the distillation literature: resnet8 ... resnet110, resnet8x4, resnet32x4.

Three stages of basic blocks at full, half and quarter resolution (He et al. 2015, arXiv 1512.03385,
section 4.2), with projection shortcuts, as in RepDistiller and the authors' code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.layers import BatchNorm, Outputs, fan_in_uniform, fan_out_normal


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input (through a 1x1 conv and BN where the shape changes)."""

    width: int
    stride: int
    conv: Callable[..., nn.Conv]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        """Returns the sum before the last ReLU: the stage's pre-activation feature where it ends one."""
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, where))
        y = self.conv(self.width, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y, where)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = self.conv(self.width, (1, 1), strides=self.stride, padding=0, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x, where)
        return x + y


class CifarResNet(nn.Module):
    """A ResNet for small images; works at any image size, pooling what is left of it.

    Attributes:
      depth: 6 n + 2, n blocks in each of the three stages.
      widths: channels of the stem and of the three stages.
      num_classes: number of logits.
      dtype: of the activations; logits are float32.
      param_dtype: of the parameters.
      axis_name: the devices' axis over which training's batch statistics are taken, if any.
    """

    depth: int
    widths: tuple[int, int, int, int]
    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, where: jax.Array | None = None) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`; `where` `[B]` marks the examples that count."""
        conv = functools.partial(
            nn.Conv,
            use_bias=False,
            kernel_init=fan_out_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        features = {}
        x = conv(self.widths[0], (3, 3), padding=1, name="conv1")(images.astype(self.dtype))
        x = features["stem"] = nn.relu(norm(name="bn1")(x, where))
        for stage, width in enumerate(self.widths[1:], start=1):
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                before = BasicBlock(width, stride, conv, norm, name=f"layer{stage}_{block}")(x, where)
                x = nn.relu(before)
            features[f"stage{stage}_preact"], features[f"stage{stage}"] = before, x
        pooled = features["pooled"] = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        head = fan_in_uniform(pooled.shape[-1])
        logits = nn.Dense(
            self.num_classes, kernel_init=head, bias_init=head, param_dtype=self.param_dtype, name="fc"
        )(pooled)
        return Outputs(logits, features)


_NARROW, _WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

RESNETS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}": functools.partial(CifarResNet, depth, _NARROW)
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{f"resnet{depth}x4": functools.partial(CifarResNet, depth, _WIDE) for depth in (8, 32)},
}
