"""Reductions over the classes: each device holds all of them, or a part.

Everything that a loss or a temperature knows of all classes at once comes through a function of this module.
With `axis_name`, the class axis is sharded by hand over that axis of a `jax.shard_map`, and a reduction is
finished by a sum or a maximum over the devices, of one number per example.  Only jax may be imported here.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd._meshes import on_auto_axes, sharding_of, varying_axes

AxisName = str | tuple[str, ...] | None
Axis = int | tuple[int, ...]


def require_sharded(name: str, x: jax.Array, axis_name: AxisName) -> None:
    """Raises ValueError unless the array differs from device to device along the named mesh axes.

    Without the types of `check_vma=True`, the transpose of a sum over devices is another sum: a gradient that
    is taken inside would be too large by the number of devices.
    """
    if axis_name is None:
        return
    names = {axis_name} if isinstance(axis_name, str) else set(axis_name)
    varying = varying_axes(x)
    if varying is not None and not names <= varying:
        raise ValueError(
            f"axis_name={axis_name!r} must name mesh axes over which the classes of {name} are sharded by "
            f"jax.shard_map, with its default check_vma=True; got an array that varies over "
            f"{sorted(varying) or 'none'}.  Under jax.jit, sharded arrays need no axis_name"
        )


def number(x: jax.Array, axis: int = -1, axis_name: AxisName = None) -> int:
    """The number of classes on all devices."""
    return x.shape[axis] * (1 if axis_name is None else jax.lax.psum(1, axis_name))


def total(x: jax.Array, axis: Axis = -1, axis_name: AxisName = None, *, keepdims: bool = False) -> jax.Array:
    """The sum over all classes."""
    part = jnp.sum(x, axis=axis, keepdims=keepdims)
    return part if axis_name is None else jax.lax.psum(part, axis_name)


def top(
    x: jax.Array, axis: Axis = -1, axis_name: AxisName = None, *, least: float | None = None
) -> jax.Array:
    """The largest entry of all classes, or `least`; the axis kept with length 1, without a gradient."""
    part = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True, initial=least))
    return part if axis_name is None else jax.lax.pmax(part, axis_name)


def some_entry(x: jax.Array, axis: int = -1, axis_name: AxisName = None) -> jax.Array:
    """One of the entries, the axis kept with length 1, without a gradient."""
    sharding = sharding_of(x)
    if axis_name is not None or (sharding is not None and sharding.spec[axis] is not None):
        return top(x, axis, axis_name)  # explicit axes do not allow the slice
    return jax.lax.stop_gradient(jax.lax.slice_in_dim(x, 0, 1, axis=axis))


def largest(x: jax.Array, axis: Axis = -1, axis_name: AxisName = None) -> jax.Array:
    """Like `top`, with a gradient that equal entries share."""
    if axis_name is None:
        return jnp.max(x, axis=axis, keepdims=True)
    reached = x == top(x, axis, axis_name)
    value, count = (
        total(jnp.where(reached, a, 0.0), axis, axis_name, keepdims=True) for a in (x, jnp.ones_like(x))
    )
    return value / count


def log_sum_exp(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """The log-sum-exp over the last axis, which is removed."""
    if axis_name is None:
        return jax.nn.logsumexp(x, axis=-1)
    highest = top(x, axis_name=axis_name)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    return jnp.log(total(jnp.exp(x - highest), axis_name=axis_name)) + highest[..., 0]


def log_softmax(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Log-probabilities over the last axis."""
    if axis_name is None:
        return jax.nn.log_softmax(x, axis=-1)
    shifted = x - top(x, axis_name=axis_name)
    return shifted - jnp.log(total(jnp.exp(shifted), axis_name=axis_name, keepdims=True))


def numbers(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """The number of each class of the last axis among those of all devices, int32 `[K]`."""
    size = x.shape[-1]
    sharding = sharding_of(x)
    if sharding is not None and sharding.spec[-1] is not None:
        # An axis of an explicit mesh: each device makes its own part.
        own = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[-1]))
        first = jax.lax.broadcasted_iota(jnp.int32, (size,), 0, out_sharding=own)
    else:
        first = jnp.arange(size, dtype=jnp.int32)
    return first if axis_name is None else first + size * jax.lax.axis_index(axis_name)


def is_first_largest(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Where the largest entry of the last axis is, as a boolean array; the first of several equal ones."""
    index = numbers(x, axis_name)
    if axis_name is None:
        return jnp.expand_dims(index, range(x.ndim - 1)) == jnp.argmax(x, axis=-1, keepdims=True)
    reached = jnp.where(x == top(x, axis_name=axis_name), index, jnp.iinfo(jnp.int32).max)
    first = -top(-reached, axis_name=axis_name)
    return jnp.expand_dims(index, range(x.ndim - 1)) == first


def are_largest(x: jax.Array, count: int, axis_name: AxisName = None) -> jax.Array:
    """Where the `count` largest entries of the last axis are, as a boolean array; of equal ones the first."""

    def add(_: int, found: jax.Array) -> jax.Array:
        return found | is_first_largest(jnp.where(found, -jnp.inf, x), axis_name)

    return jax.lax.fori_loop(1, count, add, is_first_largest(x, axis_name))


def take(x: jax.Array, indices: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """The entries of the classes `indices`, `[..., k]`, of `[..., K]`; where there is none, not a number."""
    if axis_name is None:
        sharding = sharding_of(indices)
        read = functools.partial(jnp.take_along_axis, axis=-1, mode="fill", fill_value=jnp.nan)
        return on_auto_axes(read, x, indices, spec=None if sharding is None else sharding.spec)
    size = x.shape[-1]
    own = indices - size * jax.lax.axis_index(axis_name)
    is_here = (own >= 0) & (own < size)
    here = jnp.take_along_axis(x, jnp.clip(own, 0, size - 1), axis=-1)
    some = total(is_here, (), axis_name) > 0
    return jnp.where(some, total(jnp.where(is_here, here, 0.0), (), axis_name), jnp.nan)


def without(x: jax.Array, indices: jax.Array, value: float, axis_name: AxisName = None) -> jax.Array:
    """`[..., K]` with `value` in the classes `indices`, `[..., k]`."""

    def write(x: jax.Array, indices: jax.Array) -> jax.Array:
        lead = jnp.meshgrid(*(jnp.arange(n) for n in indices.shape[:-1]), indexing="ij", sparse=True)
        return x.at[(*(a[..., None] for a in lead), indices)].set(value, mode="drop")

    size = x.shape[-1]
    if axis_name is not None:
        indices = indices - size * jax.lax.axis_index(axis_name)
    indices = jnp.where(indices < 0, size, indices)  # a negative index would count from the end
    own = sharding_of(x)
    return on_auto_axes(write, x, indices, spec=None if own is None else own.spec)
