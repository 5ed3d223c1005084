"""Every loss on eight devices: the ways of sharding logits, and what a compiled program says of each.

`MODES` compiles value and gradient of the given rows of the loss table; used by the tests and by
`experiments/importers/meshes.py`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from loss_table import ROWS
from reference import relative

SHAPE = (8, 8, 128)
DEVICES = 8
# All classes in one place, whatever the axis_name.
WITHOUT_AXIS_NAME = {name for name in ROWS if name.startswith(("mlkd", "skd", "class_correlation"))}
QUICK = {"xla_backend_optimization_level": 0}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def data(shape: tuple[int, ...] = SHAPE) -> Arrays:
    """Student and teacher logits, correlated as after some training, and labels."""
    rng = np.random.default_rng(0)
    teacher = 3 * rng.standard_normal(shape)
    student = 0.6 * teacher + 1.5 * rng.standard_normal(shape)
    labels = rng.integers(0, shape[-1], shape[:-1])
    return student.astype(np.float32), teacher.astype(np.float32), labels.astype(np.int32)


def values_and_gradients(names: Iterable[str], s: Any, t: Any, y: Any, **options: Any) -> dict[str, Any]:
    """Values, at least one axis, and the gradient of their sum by the student's logits."""
    results = {}
    for name in names:
        values, pullback = jax.vjp(lambda s, name=name: ROWS[name].call(s, t, y, **options), s)
        results[name] = jnp.atleast_1d(values), pullback(jnp.ones_like(values))[0]
    return results


class Mode(NamedTuple):
    """How to compile `values_and_gradients` of some rows; into how many batches it splits the examples."""

    program: Callable[[Iterable[str], Arrays], tuple[Any, tuple]]
    batches: int = 1
    axis_name: bool = False


def _jit(shape: tuple[int, ...], axes: tuple[str, ...], spec: P, kind: AxisType) -> Mode:
    def program(names: Iterable[str], arrays: Arrays) -> tuple[Any, tuple]:
        mesh = jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))
        put = [jax.device_put(a, NamedSharding(mesh, P(*spec[: a.ndim]))) for a in arrays]
        run = jax.jit(functools.partial(values_and_gradients, names))
        return run.lower(*put).compile(QUICK), tuple(put)

    return Mode(program)


def _shard_map(shape: tuple[int, ...], axes: tuple[str, ...], spec: P, vocabulary: str | None) -> Mode:
    batches = shape[axes.index("data")] if "data" in axes else 1

    def program(names: Iterable[str], arrays: Arrays) -> tuple[Any, tuple]:
        mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
        options = {"axis_name": vocabulary} if vocabulary else {}
        of_values = P("data") if "data" in axes else P()
        run = jax.shard_map(
            functools.partial(values_and_gradients, names, **options),
            mesh=mesh,
            in_specs=(spec, spec, P(*spec[:2])),
            out_specs={name: (of_values, spec) for name in names},
        )
        return jax.jit(run).lower(*arrays).compile(QUICK), arrays

    return Mode(program, batches, vocabulary is not None)


def _pmap(names: Iterable[str], arrays: Arrays) -> tuple[Any, tuple]:
    pieces = tuple(a.reshape(DEVICES, -1, *a.shape[1:]) for a in arrays)
    return jax.pmap(functools.partial(values_and_gradients, names)).lower(*pieces).compile(), pieces


_LAYOUTS = {
    "batch": ((8,), ("data",), P("data")),
    "tokens": ((8,), ("tokens",), P(None, "tokens")),
    "vocabulary": ((8,), ("vocabulary",), P(None, None, "vocabulary")),
    "batch and vocabulary": ((4, 2), ("data", "vocabulary"), P("data", None, "vocabulary")),
}
MODES: dict[str, Mode] = {
    f"jit, {kind.name.lower()} axes: {name}": _jit(*layout, kind)
    for kind in (AxisType.Explicit, AxisType.Auto)
    for name, layout in _LAYOUTS.items()
}
MODES |= {
    f"shard_map: {name}": _shard_map(*layout, "vocabulary" if "vocabulary" in layout[1] else None)
    for name, layout in _LAYOUTS.items()
    if name != "tokens"
}
MODES["pmap: batch"] = Mode(_pmap, DEVICES)


@functools.cache
def expected(names: tuple[str, ...], shape: tuple[int, ...], batches: int) -> tuple[dict[str, Any], float]:
    """The results on one device, and the operations that they take there."""
    arrays = data(shape)
    pieces = [tuple(np.split(a, batches)[i] for a in arrays) for i in range(batches)]
    program = jax.jit(functools.partial(values_and_gradients, names)).lower(*pieces[0]).compile(QUICK)
    results = [program(*piece) for piece in pieces]
    joined = jax.tree.map(lambda *a: np.concatenate([np.asarray(x) for x in a]), *results)
    return joined, batches * program.cost_analysis()["flops"]


def gathered(program: Any) -> list[tuple[str, int]]:
    """The collectives that move whole arrays (not sums or maxima), with the entries of their result."""
    pattern = r"= \(?\w+\[([\d,]*)\][^=]*? (all-gather|all-to-all|collective-permute)(?:-start)?\("
    return [
        (kind, math.prod(int(n) for n in shape.split(",") if n))
        for shape, kind in re.findall(pattern, program.as_text())
    ]


class Outcome(NamedTuple):
    """Deviation relative to the largest entry; arrays that are moved; by how much a device has less to do."""

    deviation: dict[str, float]
    moved: list[tuple[str, int]]
    divided: float


def outcome(mode: str, rows: Iterable[str], shape: tuple[int, ...] = SHAPE) -> Outcome:
    """Compiles and runs the rows in a mode, and compares with one device."""
    names, arrays = tuple(rows), data(shape)
    program, arguments = MODES[mode].program(names, arrays)
    results = jax.device_get(program(*arguments))
    correct, flops = expected(names, shape, MODES[mode].batches)

    def deviation(name: str) -> float:
        pairs = zip(results[name], correct[name], strict=True)
        return max(relative(np.ravel(a), np.ravel(b)) for a, b in pairs)

    # What is as large as a device's part of the logits; smaller are numbers per example.
    least = math.prod(arrays[0].shape) // DEVICES
    moved = [(kind, size) for kind, size in gathered(program) if size >= least]
    cost = program.cost_analysis()
    return Outcome({name: deviation(name) for name in names}, moved, flops / cost["flops"])
