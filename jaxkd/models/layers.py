"""What the networks share: their outputs, their common attributes, and the layers that they are made of.

The conventions are those of the PyTorch code of the field: explicit symmetric padding, and batch norm with
torch's running statistics.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxkd.models.convolution import grouped_convolution
from jaxkd.models.initializers import Initializer, fan_in_uniform, ones, uniform, zeros


@flax.struct.dataclass
class Outputs:
    """What a network returns: logits `[B, K]`, and features by name.

    Those of the package's networks: "stem", "stage1", "stage1_preact", ..., "last" (the map that is pooled),
    "pooled", and "cam" (the class activation maps `[B, H, W, K]`: the last layer, without bias, on "last").
    """

    logits: jax.Array
    features: Mapping[str, jax.Array]


@functools.partial(jax.jit, inline=True)
def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`, as a selection.

    XLA for CPUs takes a maximum with zero for so cheap that it computes it again, with the batch norm before
    it, wherever it is read, and in the gradient of a convolution's kernel that is from memory in transposed
    order: a step of ResNet-20 took 1.35 times as long.  Traced once a shape, and as one operation, so that
    `lazy_init` does not make the zeros of every shape on the device.
    """
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with torch's running statistics.

    In training it uses the statistics of the global batch: of all devices along `axis_name`, and only of
    the examples in `where`.  The running variance is that of the unbiased batch variance, as in torch (Flax's
    own layer stores the biased one).  Statistics are float32 whatever `dtype` is.
    """

    use_running_average: bool
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        """Normalises `x` `[B, ..., C]`; `where` `[B]` marks the examples that count."""
        shape = (x.shape[-1],)
        scale = self.param("scale", ones, shape, self.param_dtype)
        bias = self.param("bias", zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", zeros, None, shape)
        running_var = self.variable("batch_stats", "var", ones, None, shape)

        if self.is_initializing():
            # With fresh statistics there is nothing to normalise, and XLA would compile programs for it.
            return x.astype(self.dtype)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var, count = batch_statistics(widened(x), where, self.axis_name)
            unbiased = var * count / jnp.maximum(count - 1, 1)
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                moved = self.momentum * running.value + (1 - self.momentum) * new
                # A device, or a part of a batch, that holds no example says nothing of the statistics.
                running.value = jnp.where(count > 0, moved, running.value)

        # One product and one sum an element, and `x` itself is all that its gradient needs.  Where the mean
        # is many deviations from zero this costs digits, as the variance above does: 1e-5 at a hundred.
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        return (widened(x) * factor + (bias - mean * factor)).astype(self.dtype)


def widened(x: jax.Array) -> jax.Array:
    """In at least 32 bits: float32, or float64 as it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def linear(width: int, *, inputs: int, name: str) -> nn.Dense:
    """A linear layer that begins as torch's, for `inputs` features."""
    return nn.Dense(width, kernel_init=fan_in_uniform, bias_init=uniform(1 / math.sqrt(inputs)), name=name)


def batch_statistics(
    x: jax.Array, where: jax.Array | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of each channel over a global batch, and how many numbers they are of.

    Args:
      x: one device's share, float32 `[B, ..., C]`.
      where: which examples count, bool `[B]`; None for all.  Rows `[B * T, ...]` are T of each example.
      axis_name: the devices' axis; None for this device alone.

    Raises:
      ValueError: the first axis is neither the batch nor a multiple of it.
    """
    axes = tuple(range(x.ndim - 1))
    per_example = math.prod(x.shape[1:-1])
    if where is None:
        kept, examples = x, jnp.float32(x.shape[0])
    else:
        if x.shape[0] % where.shape[0]:
            raise ValueError(
                f"batch norm of an array {list(x.shape)} in a batch of {where.shape[0]} examples: the first "
                "axis must be that of the examples, or of the same number of rows for each"
            )
        if x.shape[0] != where.shape[0]:
            where = jnp.repeat(where, x.shape[0] // where.shape[0])
        kept = jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)
        examples = jnp.sum(where, dtype=jnp.float32)
    sums = jnp.sum(kept, axes), jnp.sum(kept * kept, axes), examples * per_example
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    total, squares, count = sums
    divisor = jnp.maximum(count, 1)
    mean = total / divisor
    return mean, jnp.maximum(squares / divisor - mean**2, 0.0), count


@dataclasses.dataclass(frozen=True)
class Layers:
    """Creates the layers of one network in one mode, with their shared arguments set once.

    Attributes:
      train: whether batch norm takes the statistics of the batch.
      kernel_init: of the convolutions.
      dtype: of the activations.
      param_dtype: of the parameters.
      axis_name: the devices' axis over which training's batch statistics are taken, if any.
    """

    train: bool
    kernel_init: Initializer
    dtype: Any
    param_dtype: Any
    axis_name: str | None

    def conv(
        self, width: int, size: int, *, stride: int = 1, groups: int = 1, use_bias: bool = False, name: str
    ) -> nn.Conv:
        """A `size` x `size` convolution, padded with zeros so that only the stride makes maps smaller."""
        return nn.Conv(
            width,
            (size, size),
            strides=stride,
            padding=size // 2,
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=self.kernel_init,
            bias_init=zeros,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            conv_general_dilated=grouped_convolution if groups > 1 else None,
            name=name,
        )

    def norm(self, name: str) -> BatchNorm:
        """A batch normalisation; call it with the input and `where`."""
        return BatchNorm(
            use_running_average=not self.train,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )


class Classifier(nn.Module, kw_only=True):
    """What all networks have in common; a family's `__call__` maps images to `Outputs` with its help.

    Attributes:
      num_classes: number of logits.
      dtype: of the activations; batch statistics, pooled features and logits are float32.
      param_dtype: of the parameters.
      axis_name: the devices' axis over which training's batch statistics are taken, if any.
    """

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    smallest_image: ClassVar[int] = 1  # height and width below which nothing is left to pool

    @property
    def preact_norms(self) -> Mapping[str, tuple[str, ...]]:
        """Stage to the path of the batch norm that makes its pre-activation feature, where one alone does."""
        return {}

    def _begin(self, images: jax.Array, train: bool, kernel_init: Initializer) -> tuple[Layers, jax.Array]:
        """Checks the images; returns the maker of layers and the images in the activations' type."""
        if images.ndim != 4:
            raise ValueError(f"images must be [B, H, W, C], got {list(images.shape)}")
        if min(images.shape[1:3]) < self.smallest_image:
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} are too small for {type(self).__name__}, "
                f"which needs {self.smallest_image}x{self.smallest_image} or more; "
                "enlarge them, or take a ResNet"
            )
        layers = Layers(train, kernel_init, self.dtype, self.param_dtype, self.axis_name)
        return layers, images.astype(self.dtype)

    def _end(
        self,
        features: dict[str, jax.Array],
        x: jax.Array,
        head: str,
        *,
        kernel_init: Initializer = fan_in_uniform,
        bias_init: Initializer | None = None,
    ) -> Outputs:
        """Pools the last map and maps it to logits, in float32; the initialisers default to torch's."""
        pooled = jnp.mean(widened(x), axis=(1, 2))
        dense = nn.Dense(
            self.num_classes,
            kernel_init=kernel_init,
            bias_init=bias_init or uniform(1 / math.sqrt(x.shape[-1])),
            param_dtype=self.param_dtype,
            name=head,
        )
        logits = dense(pooled)
        activation = widened(x) @ dense.variables["params"]["kernel"]
        return Outputs(logits, {**features, "last": x, "pooled": pooled, "cam": activation})
