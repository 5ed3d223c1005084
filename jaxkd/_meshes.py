"""What an array's type says of the mesh it lies on: explicit axes, and axes of a `jax.shard_map`.

The names for it differ from version to version of jax.  Only jax may be imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharding_of(x: Any) -> NamedSharding | None:
    """The sharding in the type of an array on a mesh; what Auto axes do is not in it."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and not sharding.mesh.empty else None


def on_auto_axes(function: Callable[..., jax.Array], *arguments: Any, spec: Any = None) -> jax.Array:
    """Calls the function; on a mesh with explicit axes, the compiler shards what is between.

    Some reshapes, Gram matrices and medians of sharded arrays have no sharding that follows from their
    arguments.

    Args:
      function: of arrays and trees of them; gives one array.
      arguments: the function's.
      spec: the sharding of the result on explicit axes; None for the same on all devices.
    """
    for x in jax.tree.leaves(arguments):
        sharding = sharding_of(x)
        if sharding is not None and AxisType.Explicit in sharding.mesh.axis_types:
            out = NamedSharding(sharding.mesh, spec or PartitionSpec())
            return jax.sharding.auto_axes(function, out_sharding=out)(*arguments)
    return function(*arguments)


def varying_axes(x: Any) -> frozenset[str] | None:
    """The axes of `jax.shard_map` along which an array differs; None where this jax does not track them."""
    kind = jax.typeof(x)
    kind = getattr(kind, "manual_axis_type", kind)
    return getattr(kind, "varying", getattr(kind, "vma", None))


def vary(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """The same values with a type that differs along these axes too."""
    more = tuple(sorted(set(axes) - (varying_axes(x) or frozenset())))
    if not more:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, more, to="varying")
    return jax.lax.pvary(x, more)  # type: ignore[attr-defined]  # the name before jax 0.9


def contract(
    a: jax.Array, b: jax.Array, axes: tuple[tuple[int, ...], tuple[int, ...]], *, like: jax.Array
) -> jax.Array:
    """The product of two arrays summed over these axes, which is a gradient of `like`: on its devices."""
    sharding = sharding_of(like)
    explicit = sharding is not None and AxisType.Explicit in sharding.mesh.axis_types
    placed: dict[str, Any] = {"out_sharding": sharding} if explicit else {}
    product = jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=like.dtype, **placed)
    more = (varying_axes(product) or frozenset()) - (varying_axes(like) or frozenset())
    return jax.lax.psum(product, tuple(sorted(more))) if more else product
