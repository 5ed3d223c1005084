"""Large logits on a CPU: rows in blocks that stay in the cache, value and gradient in one pass.

Private to `jaxkd.losses`.  Softmaxes of a gigabyte of logits are bound by the memory's speed on a CPU, and
XLA goes over the whole array for each of a dozen reductions.  In blocks of a few rows they all find the data
in the cache: at 4096 x 32000 on two cores, half the time and a sixth of the temporary memory.  On
accelerators whole arrays are better, and left alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import temperature as _temperature

# Below this many logits the caches hold them anyway; a block is the second number of logits.
MIN_SIZE = 2**23
BLOCK_SIZE = 2**18

RowLoss = Callable[[jax.Array, jax.Array], jax.Array]


def rows_per_block(shape: tuple[int, ...], temperature: _temperature.Temperature) -> int:
    """How many rows make a block for this loss here; 0 if it is not to be cut into blocks."""
    num_rows = math.prod(shape[:-1])
    if math.prod(shape) < MIN_SIZE or jax.default_backend() != "cpu" or not _self_contained(temperature):
        return 0
    most = max(1, BLOCK_SIZE // shape[-1])
    rows = next(n for n in range(min(most, num_rows), 0, -1) if num_rows % n == 0)
    return rows if 4 * rows > most else 0


def _self_contained(temperature: _temperature.Temperature) -> bool:
    """Whether it is the same for a row alone, and brings in nothing that a gradient may be asked of."""
    if isinstance(temperature, functools.partial):
        values = (*temperature.args, *temperature.keywords.values())
        return _self_contained(temperature.func) and all(isinstance(v, str | float | int) for v in values)
    if callable(temperature):
        return getattr(temperature, "__module__", None) == _temperature.__name__
    return isinstance(temperature, float | int)


def by_blocks(loss: RowLoss, rows: int, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns `loss(student, teacher)`, worked out `rows` rows at a time.

    Args:
      loss: from logits `[n, K]` to `[n]`, each row by itself.
      rows: a divisor of the number of examples.
      student: shape `[..., K]`.
      teacher: the same; gets no gradient.

    Returns:
      One value per example, shape `[...]`.
    """
    shape = student.shape[:-1]
    blocks = (-1, rows, student.shape[-1])
    return _blocks(loss, student.reshape(blocks), teacher.reshape(blocks)).reshape(shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _blocks(loss: RowLoss, student: jax.Array, teacher: jax.Array) -> jax.Array:
    return jax.lax.map(lambda block: loss(*block), (student, teacher))


@_blocks.defjvp
def _blocks_jvp(loss: RowLoss, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # Rows do not know of each other, so that their gradients come out of one backward pass; and as a rule of
    # forward differentiation, this serves jvp, grad and their compositions alike.
    def value_and_gradient(block: tuple) -> tuple[jax.Array, jax.Array]:
        student, teacher = block
        value, pullback = jax.vjp(lambda s: loss(s, teacher), student)
        return value, pullback(jnp.ones_like(value))[0]

    value, gradient = jax.lax.map(value_and_gradient, primals)
    return value, jnp.sum(gradient * tangents[0], axis=-1)
