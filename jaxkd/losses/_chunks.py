"""Arrays of tokens, cut into chunks that take a part of every device's tokens.

Private to `jaxkd.losses`.  No formula of a method is here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jaxkd._meshes import on_auto_axes, sharding_of


class Cut(NamedTuple):
    """The chunking of arrays with leading axes `tokens`.

    Each of these axes becomes three, `shards`, `number` and `size`: a chunk takes the same `size` entries of
    every shard.  Without shards, all token axes are one first.
    """

    tokens: tuple[int, ...]
    shards: tuple[int, ...]
    number: tuple[int, ...]
    size: tuple[int, ...]

    def split(self, x: jax.Array, fill: float = 0) -> jax.Array:
        """`[tokens, ...]` to `[chunks, tokens of a chunk, ...]`; `fill` completes the last chunk."""
        rest = x.shape[len(self.tokens) :]

        def split(x: jax.Array) -> jax.Array:
            x = x.reshape(*self._axes(), *rest)
            missing = [(0, whole - n) for whole, n in zip(self._whole(), self._axes(), strict=True)]
            if any(after for _, after in missing):
                x = jnp.pad(x, [*missing, *[(0, 0)] * len(rest)], constant_values=fill)
            parts = zip(self.shards, self.number, self.size, strict=True)
            x = x.reshape(*(n for part in parts for n in part), *rest)
            x = jnp.moveaxis(x, self._middle(), range(len(self.number)))
            inside = (a * b for a, b in zip(self.shards, self.size, strict=True))
            return x.reshape(math.prod(self.number), *inside, *rest)

        sharding = sharding_of(x)
        names = () if sharding is None else sharding.spec
        own = names[: len(self.tokens)] if len(self._axes()) == len(self.tokens) else (None,)
        return on_auto_axes(split, x, spec=PartitionSpec(None, *own, *names[len(self.tokens) :]))

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse, for one value per token."""

        def join(x: jax.Array) -> jax.Array:
            parts = zip(self.shards, self.size, strict=True)
            x = x.reshape(*self.number, *(n for part in parts for n in part))
            x = jnp.moveaxis(x, range(len(self.number)), self._middle())
            x = x.reshape(self._whole())
            if self._whole() != self._axes():
                x = x[tuple(slice(n) for n in self._axes())]
            return x.reshape(self.tokens)

        sharding = sharding_of(x)
        own = () if sharding is None else sharding.spec[1:]
        return on_auto_axes(join, x, spec=PartitionSpec(*own) if len(own) == len(self.tokens) else None)

    def _axes(self) -> tuple[int, ...]:
        return self.tokens if len(self.number) == len(self.tokens) else (math.prod(self.tokens),)

    def _whole(self) -> tuple[int, ...]:
        return tuple(map(math.prod, zip(self.shards, self.number, self.size, strict=True)))

    def _middle(self) -> range:
        return range(1, 3 * len(self.number), 3)


def cut(like: jax.Array, tokens: tuple[int, ...], chunk_size: int) -> Cut:
    """The cut of arrays that are sharded as `like` into chunks of about `chunk_size` tokens, or fewer.

    A chunk has at least one token of every shard.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    shards = _shards(like, tokens, chunk_size)
    left = max(chunk_size // math.prod(shards), 1)
    if all(n == 1 for n in shards):
        everything = math.prod(tokens)
        size = max(min(left, everything), 1)
        return Cut(tokens, (1,), (-(-everything // size),), (size,))
    sizes, numbers = [], []
    for n, parts in zip(tokens, shards, strict=True):
        own = n // parts
        size = max((d for d in range(1, min(own, left) + 1) if own % d == 0), default=1)
        if parts == 1 and 2 * size < min(own, left):
            size = min(own, left)  # no good divisor: the last chunk is completed
        sizes.append(size)
        numbers.append(-(-own // size))
        left = max(left // size, 1)
    return Cut(tokens, shards, tuple(numbers), tuple(sizes))


def _shards(like: jax.Array, tokens: tuple[int, ...], chunk_size: int) -> tuple[int, ...]:
    """Into how many shards each axis of tokens may be cut.

    Explicit axes of a mesh say it.  An array does not know which Auto axes it is sharded over: each of its
    axes is taken to be sharded over all of them.  A device then has as many tokens of a chunk as there are
    devices, or more.
    """
    sharding = sharding_of(like)
    if sharding is None:
        return (1,) * len(tokens)
    sizes = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_sizes, strict=True))
    kinds = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    unknown = math.prod(sizes[name] for name, kind in kinds if kind == AxisType.Auto)
    shards = []
    for n, names in zip(tokens, sharding.spec, strict=False):
        names = (names,) if isinstance(names, str) else names or ()
        shards.append(math.prod(sizes[name] for name in names))
        more = math.gcd(n // shards[-1], unknown)
        if math.prod(shards) * more <= max(chunk_size, unknown**2):
            shards[-1] *= more
    return tuple(shards)
