"""Initial values as the sources of the networks draw them, in torch's terms.

All numbers are made by NumPy on the host: XLA compiles a program for every parameter shape, and one with
threefry in it takes long; together longer than training's own compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


def fan_out_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Kaiming's normal initialiser for ReLU by the fan out: N(0, 2 / (kh kw c_out))."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return _drawn(key, shape, dtype, lambda rng: rng.standard_normal(shape) * math.sqrt(2 / fan_out))


def fan_in_uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """PyTorch's default for the kernels of convolutions and linear layers: U(-b, b), b = 1 / sqrt(fan_in)."""
    return uniform(1 / math.sqrt(math.prod(shape[:-1])))(key, shape, dtype)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""

    def initializer(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return _drawn(key, shape, dtype, lambda rng: rng.uniform(-bound, bound, shape))

    return initializer


def normal(std: float) -> Initializer:
    """N(0, std^2)."""

    def initializer(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return _drawn(key, shape, dtype, lambda rng: rng.standard_normal(shape) * std)

    return initializer


def zeros(key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """All 0, whatever the key."""
    return jnp.asarray(np.zeros(shape, dtype))


def ones(key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """All 1, whatever the key."""
    return jnp.asarray(np.ones(shape, dtype))


def _drawn(
    key: jax.Array, shape: Sequence[int], dtype: Any, draw: Callable[[np.random.Generator], np.ndarray]
) -> jax.Array:
    """Draws on the host from a generator keyed by `key`; the same numbers eagerly and under `jit`."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key

    def host(words: jax.typing.ArrayLike) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=np.resize(np.asarray(words, np.uint64), 2)))
        return draw(rng).astype(np.float32)

    if not isinstance(data, jax.core.Tracer):  # a callback would be compiled for every parameter
        return jnp.asarray(host(data), dtype)
    values = jax.pure_callback(
        host, jax.ShapeDtypeStruct(tuple(shape), jnp.float32), data, vmap_method="sequential"
    )
    return values.astype(dtype)
