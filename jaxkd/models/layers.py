"""The layers that the networks share, with the conventions of the PyTorch code of the field.

Explicit symmetric padding, batch norm with torch's running statistics, and initialisers whose numbers are
drawn by NumPy on the host: XLA compiles a threefry program for every parameter shape, which takes longer
than training's own compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


@flax.struct.dataclass
class Outputs:
    """What a network returns: logits `[B, K]`, and features by name ("stem", "stage1", ..., "pooled")."""

    logits: jax.Array
    features: Mapping[str, jax.Array]


def fan_out_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Kaiming's normal initialiser for ReLU by the fan out: N(0, 2 / (kh kw c_out))."""
    return _drawn(key, shape, dtype, lambda rng: rng.standard_normal(shape) * math.sqrt(2 / _fan(shape, -1)))


def fan_in_uniform(fan_in: int) -> Initializer:
    """PyTorch's default for linear layers, weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def initializer(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return _drawn(key, shape, dtype, lambda rng: rng.uniform(-bound, bound, shape))

    return initializer


def _fan(shape: Sequence[int], channels: int) -> int:
    return math.prod(shape[:-2]) * shape[channels]


def _drawn(
    key: jax.Array, shape: Sequence[int], dtype: Any, draw: Callable[[np.random.Generator], np.ndarray]
) -> jax.Array:
    """Draws on the host from a generator keyed by `key`; the same numbers eagerly and under `jit`."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key

    def host(words: jax.typing.ArrayLike) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=np.resize(np.asarray(words, np.uint64), 2)))
        return draw(rng).astype(np.float32)

    values = jax.pure_callback(
        host, jax.ShapeDtypeStruct(tuple(shape), jnp.float32), data, vmap_method="sequential"
    )
    return values.astype(dtype)


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
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var, count = self._batch_statistics(x.astype(jnp.float32), where)
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased

        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)

    def _batch_statistics(
        self, x: jax.Array, where: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        per_example = math.prod(x.shape[1:-1])
        if where is None:
            kept, examples = x, jnp.float32(x.shape[0])
        else:
            kept = jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)
            examples = jnp.sum(where, dtype=jnp.float32)
        sums = jnp.sum(kept, axes), jnp.sum(kept * kept, axes), examples * per_example
        if self.axis_name is not None and not self.is_initializing():
            sums = jax.lax.psum(sums, self.axis_name)
        total, squares, count = sums
        mean = total / count
        return mean, jnp.maximum(squares / count - mean**2, 0.0), count
