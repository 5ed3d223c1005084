"""A Flax NNX module as the functions of a network; apart, since NNX takes half a second to import."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd._names import describe_object, kind
from jaxkd.differences import differing_keys
from jaxkd.models.adapters import (
    MODES,
    Call,
    modes,
    outputs_of,
    require_last_axis,
    require_no_mask,
    running_average,
)
from jaxkd.models.layers import Outputs, batch_statistics
from jaxkd.models.network import Variables

# Of the call that is traced: which examples are real, and the devices' axis.
_share: contextvars.ContextVar[tuple[jax.Array | None, str | None]] = contextvars.ContextVar("share")


class _CountingBatchNorm(nnx.BatchNorm):
    """NNX's batch norm, with batch statistics of the real examples of all devices."""

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> Any:
        frozen = self.use_running_average if use_running_average is None else use_running_average
        if frozen:
            return super().__call__(x, use_running_average=True)
        require_last_axis(self.axis, x.ndim)
        require_no_mask(mask)
        mean, var, count = batch_statistics(x.astype(jnp.float32), *_share.get())
        running = self.mean[...], self.var[...]
        self.mean[...], self.var[...] = mean, var
        result = super().__call__(x, use_running_average=True)
        for variable, old, new in zip((self.mean, self.var), running, (mean, var), strict=True):
            variable[...] = running_average(old, new, self.momentum, count)
        return result


@dataclasses.dataclass(frozen=True)
class NNXForward:
    """An NNX module as the functions of a network; see `from_nnx`."""

    make: nnx.Module | Callable[[nnx.Rngs], nnx.Module]
    call: Call | None = None
    axis_name: str | None = None

    def on_axis(self, axis_name: str | None) -> NNXForward:
        """See `Forward`."""
        return dataclasses.replace(self, axis_name=axis_name)

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """See `Forward`."""
        with jax.ensure_compile_time_eval():  # NNX loses arrays that are attributes if they are traced
            return _collections(nnx.state(self._made(seed)))

    @property
    def given(self) -> Any:
        """See `Forward`: those of a module, and not of a function that makes one."""
        return _collections(nnx.state(self.make)) if isinstance(self.make, nnx.Module) else None

    def variables(self, given: Any) -> dict[str, Any]:
        """The network's variables from those of `init`, or from a module's state, or nested dictionaries."""
        if isinstance(given, nnx.State):
            return _collections(given)
        return {name: _flat(tree) for name, tree in given.items()}

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        where: jax.Array | None,
        rngs: Mapping[str, jax.Array] | None,
    ) -> tuple[Outputs, Mapping[str, Any]]:
        """See `Forward`."""
        graph, flat = self._template
        values = {**variables.get("params", {}), **variables.get("state", {})}
        _require_same_shapes(
            {_key(path): list(jnp.shape(_value(leaf))) for path, leaf in flat if _is_kept(leaf)},
            {key: list(jnp.shape(value)) for key, value in values.items()},
        )
        # New variables, since NNX lets a trace change only its own.
        state = nnx.from_flat_state(
            (path, _replaced(leaf, values[_key(path)] if _is_kept(leaf) else _value(leaf)))
            for path, leaf in flat
        )
        module = nnx.merge(graph, state)
        for _, part in nnx.iter_graph(module):
            if type(part) is nnx.BatchNorm:
                part.__class__ = _CountingBatchNorm
        if train:
            module.train()
            if rngs:
                _reseed(module, rngs["dropout"])
        else:
            module.eval()
        token = _share.set((where, self.axis_name))
        try:
            if self.call is not None:
                result = self.call(module, images, train)
            else:
                result = module(images, **modes(type(module), train))
        finally:
            _share.reset(token)
        rest = _collections(nnx.state(module)).get("state", {})
        return outputs_of(result, {}), {"state": rest} if train and rest else {}

    def describe(self) -> dict[str, Any]:
        """See `Forward`; a hash of what is no array in the module's attributes."""
        graph, flat = self._template
        options = []
        for path, part in nnx.iter_graph(nnx.merge(graph, nnx.from_flat_state(flat))):
            if not isinstance(part, nnx.Module):
                continue
            flaxs = type(part).__module__.startswith("flax.")
            for name, value in sorted(vars(part).items()):
                # Not the modes, nor what is empty: Flax may add such attributes to its own modules.
                if _is_option(value, flaxs) and name not in MODES and name[0] != "_":
                    options.append(f"{path} {name}={describe_object(value)}")
        return {"module": "NNX", "options": hashlib.sha256("\n".join(options).encode()).hexdigest()[:16]}

    def _made(self, seed: int) -> nnx.Module:
        if isinstance(self.make, nnx.Module):
            return nnx.clone(self.make)
        called_as = "a function that is given as a network is called with nnx.Rngs and makes an NNX module"
        try:
            module = self.make(nnx.Rngs(seed))
        except TypeError as error:
            error.add_note(called_as)
            raise
        if not isinstance(module, nnx.Module):
            raise TypeError(f"{called_as}, got {kind(module)}")
        return module

    @functools.cached_property
    def _template(self) -> tuple[Any, list[tuple[Any, Any]]]:
        """The module's structure, with placeholder arrays only for its random keys."""
        with jax.ensure_compile_time_eval():
            graph, state = nnx.split(self._made(0))
            return graph, list(nnx.to_flat_state(state))


def _is_option(value: Any, flaxs: bool) -> bool:
    """Whether an attribute of a module says what it computes; `flaxs`: of one of Flax's own modules."""
    if isinstance(value, bool | int | float | str | tuple):
        return bool(value)
    # Modules are described apart; arrays, and containers of arrays and modules, are variables.
    if flaxs or value is None or isinstance(value, nnx.Module | nnx.Rngs | nnx.RngStream):
        return False
    return not jax.tree.leaves(nnx.state({"value": value}))


def _collections(state: Any) -> dict[str, Any]:
    """Arrays by path: parameters, and everything else but random keys and intermediate values."""
    params: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for path, leaf in nnx.to_flat_state(state):
        if _is_kept(leaf):
            (params if isinstance(leaf, nnx.Param) else rest)[_key(path)] = jnp.array(_value(leaf))
    return {"params": params, **({"state": rest} if rest else {})}


def _require_same_shapes(known: Mapping[str, list[int]], found: Mapping[str, list[int]]) -> None:
    """Raises ValueError unless the variables are those of the module."""
    problems = [
        f"without {key}" if given is None
        else f"with {key}, which it does not have" if wanted is None
        else f"{key} {given} where it has {wanted}"
        for key, (given, wanted) in differing_keys(found, known).items()
    ]  # fmt: skip
    if problems:
        raise ValueError(
            f"the variables do not fit the NNX module: {', '.join(problems[:5])}; they must be what its "
            "init(seed, image_shape) gives"
        )


def _is_kept(leaf: Any) -> bool:
    return not isinstance(leaf, nnx.RngState | nnx.Intermediate)


def _value(leaf: Any) -> Any:
    """That of a variable, or of an array that is an attribute itself."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _replaced(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value


def _reseed(module: nnx.Module, key: jax.Array) -> None:
    """Gives every stream of random numbers a key of this step; `nnx.vmap` and `nnx.scan` have several."""
    tags = {part.tag for _, part in nnx.iter_graph(module) if isinstance(part, nnx.RngStream)}
    tags -= {"params", "default", "dropout"}
    others: dict[str, Any] = {tag: jax.random.fold_in(key, zlib.crc32(tag.encode())) for tag in sorted(tags)}
    nnx.reseed(module, policy="match_shape", default=key, dropout=key, **others)


def _flat(tree: Any, path: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Arrays by path, from nested mappings or from one that is flat."""
    if not isinstance(tree, Mapping):
        return {_key(path): tree}
    return {key: leaf for name, child in tree.items() for key, leaf in _flat(child, (*path, name)).items()}


def _key(path: tuple[Any, ...]) -> str:
    return "-".join(map(str, path))
