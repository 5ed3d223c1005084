"""The pure steps on several devices: pmap or its successor, and several steps per call.

The successor is `jax.jit` of `jax.shard_map`, on arrays of all processes; the step is the same, and so are
its bits.  Runs of one shape share one compiled program per process: the mapped functions are cached by their
arguments, and the seed is an input of the program.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.data.augment import Numbered
from jaxkd.data.batch import Batch, fetch
from jaxkd.methods import Method
from jaxkd.models import Network
from jaxkd.models.network import AXIS
from jaxkd.training.state import TrainState
from jaxkd.training.step import Frozen, eval_step, teacher_rows, train_step
from jaxkd.training.task import Task

T = TypeVar("T")

Mapping = Literal["pmap", "shard_map"]

# Steps per call on TPU and GPU.  On a CPU the gradients of convolutions inside an XLA loop fall back to a
# naive implementation, 14 to 43 times slower (jax-ml/jax#12868), so there it is one.
_STEPS_PER_CALL = {"cpu": 1}
_STEPS_PER_CALL_ELSEWHERE = 25
# Number of cached programs of each kind: enough for alternating runs, few enough to free memory.
_KEPT = 4


def _kept(make: Callable[..., T]) -> Callable[..., T]:
    """Caches results by their arguments, and frees the least recently used one.

    Unhashable arguments always give a new result.
    """
    kept: collections.OrderedDict[Any, T] = collections.OrderedDict()

    @functools.wraps(make)
    def wrapped(*arguments: Any) -> T:
        try:
            known = arguments in kept
        except TypeError:
            known, key = False, object()
        else:
            key = arguments
        if not known:
            kept[key] = make(*arguments)
        kept.move_to_end(key)
        while len(kept) > _KEPT:
            _free(kept.popitem(last=False)[1])
        return kept[key]

    return wrapped


def _free(mapped: Any) -> None:
    """Frees the programs behind a function made by `jax.pmap`; others are freed with their function.

    JAX keeps them as long as the mapped function lives, and they keep that function alive.  If a version of
    JAX caches them in another way, this does nothing.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src.pmap import _cached_shard_map

        _cached_shard_map.evict_function(mapped.__wrapped__)


def default_steps_per_call(devices: Sequence[jax.Device]) -> int:
    """Number of training steps per call on these devices."""
    return _STEPS_PER_CALL.get(devices[0].platform, _STEPS_PER_CALL_ELSEWHERE)


def _map(
    function: Callable[..., Any],
    devices: tuple[jax.Device, ...],
    mapping: Mapping,
    shared: Sequence[bool],
    *,
    same: bool,
    donate: bool = False,
) -> Callable[..., Any]:
    """Maps a function of one device's arrays over all devices.

    Args:
      function: uses collective operations over `AXIS`.
      devices: the devices of all processes.
      mapping: the kind of mapping.
      shared: which arguments are sharded, `[D, ...]` (over this process's devices); the others are equal on
        all devices.
      same: whether the results are equal on all devices; otherwise they are `[D, ...]`.
      donate: whether the first argument's buffers may be reused.
    """
    donated = (0,) if donate else ()
    if mapping == "pmap":
        axes = tuple(0 if one else None for one in shared)
        out = None if same else 0
        return jax.pmap(
            function, axis_name=AXIS, in_axes=axes, out_axes=out, donate_argnums=donated, devices=devices
        )

    def body(*arguments: Any) -> Any:
        own = (
            jax.tree.map(lambda leaf: leaf[0], argument) if one else argument
            for argument, one in zip(arguments, shared, strict=True)
        )
        result = function(*own)
        return result if same else jax.tree.map(lambda leaf: leaf[None], result)

    mesh = Mesh(np.array(devices), (AXIS,))
    specs = tuple(PartitionSpec(AXIS) if one else PartitionSpec() for one in shared)
    # The specs above say what is equal on all devices: JAX need not check it, which changes psum's gradient.
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec() if same else PartitionSpec(AXIS),
        check_vma=False,
    )
    compiled = jax.jit(mapped, donate_argnums=donated)
    rows = NamedSharding(mesh, PartitionSpec(AXIS))

    def everywhere(leaf: Any) -> jax.Array:
        """This process's rows as a part of the global array."""
        shape = len(devices), *leaf.shape[1:]
        return jax.make_array_from_process_local_data(rows, np.asarray(leaf), shape)

    def call(*arguments: Any) -> Any:
        placed = (
            jax.tree.map(everywhere, argument) if one else argument
            for argument, one in zip(arguments, shared, strict=True)
        )
        return compiled(*placed)

    return call


def mapped_train_step(
    task: Task, devices: Sequence[jax.Device], mapping: Mapping = "pmap"
) -> Callable[..., TrainState]:
    """`train_step` on several devices: `(state, frozen, resident, batches) -> state`.

    `resident` is the argument of `fetch`; `batches` is a `Batch` of `[D, S, B / D, ...]`: S steps per call.
    The state's buffers are donated.
    """
    mapped = _train_step(dataclasses.replace(task, seed=0), tuple(devices), mapping)
    seed = np.uint32(task.seed % 2**32)  # JAX's keys use only these bits
    return lambda state, frozen, resident, batches: mapped(state, frozen, resident, batches, seed)


@_kept
def _train_step(task: Task, devices: tuple[jax.Device, ...], mapping: Mapping) -> Callable[..., TrainState]:
    unroll = devices[0].platform == "cpu"  # loops are slow there, see _STEPS_PER_CALL

    def steps(state: TrainState, frozen: Frozen, resident: Any, batches: Batch, seed: Any) -> TrainState:
        seeded = dataclasses.replace(task, seed=seed)

        def step(before: TrainState, batch: Batch) -> tuple[TrainState, None]:
            return train_step(seeded, before, frozen, fetch(resident, batch), unroll=unroll), None

        if batches.ids.shape[0] == 1:
            return step(state, jax.tree.map(lambda leaf: leaf[0], batches))[0]
        return jax.lax.scan(step, state, batches)[0]

    return _map(steps, devices, mapping, (False, False, False, True, False), same=True, donate=True)


@_kept
def mapped_eval_step(
    network: Network,
    method: Method | None,
    devices: tuple[jax.Device, ...],
    mapping: Mapping = "pmap",
    code: str = "",
) -> Callable[..., dict[str, jax.Array]]:
    """`eval_step` on several devices: `(variables, resident, batch [D, B / D, ...]) -> sums`.

    `code` is that of a `Task`.
    """

    def sums(variables: Any, resident: Any, batch: Batch) -> dict[str, jax.Array]:
        return eval_step(network, method, variables, fetch(resident, batch))

    return _map(sums, devices, mapping, (False, False, True), same=True)


@_kept
def mapped_teacher_rows(
    network: Network,
    augmentation: Numbered,
    dtype: str,
    devices: tuple[jax.Device, ...],
    pooled: bool = False,
) -> Callable[..., jax.Array]:
    """`teacher_rows` on several devices: `(variables, resident, batch, numbers [D, B / D])`."""

    def rows(variables: Any, resident: Any, batch: Batch, numbers: jax.Array) -> jax.Array:
        seen = fetch(resident, batch)
        return teacher_rows(network, augmentation, variables, seen, numbers, pooled).astype(dtype)

    return _map(rows, devices, "pmap", (False, False, True, True), same=False)
