"""A small generative adversarial network for images, as MEKD has it.

After Radford et al. 2015 (arXiv 1511.06434).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.initializers import normal
from jaxkd.models.layers import BatchNorm, linear

_SLOPE = 0.2
_EPSILON = 0.8  # of the batch norms but the first: the source's, who passed a momentum in its place
_conv_init = normal(0.02)


class Generator(nn.Module):
    """Latent vectors `[B, L]` to images `[B, H, W, C]` in [-1, 1].

    A linear layer to a map of a quarter of the size, then two times: twice the size, 3x3 convolution.

    Attributes:
      image_shape: height and width, multiples of 4, and channels.
      width: channels of the small map; half as many after the second convolution.
    """

    image_shape: tuple[int, int, int]
    width: int = 128

    def __post_init__(self) -> None:
        if any(side % 4 or side < 4 for side in self.image_shape[:2]):
            raise ValueError(
                f"the height and width of generated images are multiples of 4, got {self.image_shape}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, latent: jax.Array, *, train: bool = False) -> jax.Array:
        """Makes images; in training, batch norm takes the statistics of the batch."""
        height, width, channels = self.image_shape
        numbers = self.width * (height // 4) * (width // 4)
        y = linear(numbers, inputs=latent.shape[-1], name="l1_0")(latent)
        y = y.reshape(-1, height // 4, width // 4, self.width)
        y = self._norm(y, train, 0, 1e-5)
        for index, out in ((2, self.width), (6, self.width // 2)):
            y = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)
            y = nn.Conv(out, (3, 3), kernel_init=_conv_init, name=f"conv_blocks_{index}")(y)
            y = nn.leaky_relu(self._norm(y, train, index + 1, _EPSILON), _SLOPE)
        return jnp.tanh(nn.Conv(channels, (3, 3), kernel_init=_conv_init, name="conv_blocks_9")(y))

    def _norm(self, y: jax.Array, train: bool, index: int, epsilon: float) -> jax.Array:
        return BatchNorm(not train, epsilon=epsilon, dtype=y.dtype, name=f"conv_blocks_{index}")(y)


class Discriminator(nn.Module):
    """Images `[B, H, W, C]` in [-1, 1] to the log odds `[B]` that they are real.

    Blocks of 3x3 convolution of stride 2, leaky ReLU, dropout of whole channels and batch norm.

    Attributes:
      blocks: how many; the first has 16 channels, each other one twice as many as the one before.
      dropout: the part of the channels that is dropped in training.
    """

    blocks: int = 4
    dropout: float = 0.25

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Judges images; dropout takes the key "dropout"."""
        y, index = images, 0
        for block in range(self.blocks):
            y = nn.Conv(16 * 2**block, (3, 3), 2, padding=1, kernel_init=_conv_init, name=f"model_{index}")(y)
            y = nn.leaky_relu(y, _SLOPE)
            y = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(y)
            if block:
                y = BatchNorm(not train, epsilon=_EPSILON, dtype=y.dtype, name=f"model_{index + 3}")(y)
            index += 4 if block else 3
        y = y.reshape(len(y), -1)
        return linear(1, inputs=y.shape[-1], name="adv_layer_0")(y)[:, 0]
