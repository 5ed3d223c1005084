"""A Flax NNX module as the functions of a network; apart, since NNX takes half a second to import."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd._names import describe_object, kind
from jaxkd.models.adapters import MODES, Call, outputs_of, require_last_axis, running_average
from jaxkd.models.layers import Outputs, batch_statistics
from jaxkd.models.network import Variables

# Of the call that is traced: which examples are real, and the devices' axis.
_share: contextvars.ContextVar[tuple[jax.Array | None, str | None]] = contextvars.ContextVar("share")


class _CountingBatchNorm(nnx.BatchNorm):
    """NNX's batch norm, with batch statistics of the real examples of all devices."""

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, **options: Any) -> Any:
        frozen = self.use_running_average if use_running_average is None else use_running_average
        if frozen:
            return super().__call__(x, use_running_average=True)
        require_last_axis(self.axis, x.ndim)
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

    make: Callable[[nnx.Rngs], nnx.Module]
    call: Call | None = None
    axis_name: str | None = None

    def on_axis(self, axis_name: str | None) -> NNXForward:
        """See `Forward`."""
        return dataclasses.replace(self, axis_name=axis_name)

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """See `Forward`."""
        module = self._made(seed)
        params, rest = self._split(nnx.state(module))
        return {"params": params, **({"state": rest} if rest else {})}

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
        values = {**variables["params"], **variables.get("state", {})}
        # New variables, since NNX lets a trace change only its own.
        state = nnx.from_flat_state(
            (path, leaf.replace(values.get(_key(path), leaf.get_value()))) for path, leaf in flat
        )
        module = nnx.merge(graph, state)
        for _, part in nnx.iter_graph(module):
            if type(part) is nnx.BatchNorm:
                part.__class__ = _CountingBatchNorm
        if train:
            module.train()
            if rngs:
                nnx.reseed(module, default=rngs["dropout"], dropout=rngs["dropout"])
        else:
            module.eval()
        token = _share.set((where, self.axis_name))
        try:
            result = self.call(module, images, train) if self.call else module(images)
        finally:
            _share.reset(token)
        _, rest = self._split(nnx.state(module))
        return outputs_of(result, {}), {"state": rest} if train and rest else {}

    def describe(self) -> dict[str, Any]:
        """See `Forward`; a hash of the numbers and texts in the module's attributes."""
        graph, flat = self._template
        # Not the modes, nor what is empty: Flax may add such attributes to its own modules.
        options = [
            f"{path} {name}={describe_object(value)}"
            for path, part in nnx.iter_graph(nnx.merge(graph, nnx.from_flat_state(flat)))
            if isinstance(part, nnx.Module)
            for name, value in sorted(vars(part).items())
            if isinstance(value, int | float | str | tuple) and value and name not in MODES and name[0] != "_"
        ]
        return {"module": "NNX", "options": hashlib.sha256("\n".join(options).encode()).hexdigest()[:16]}

    def _made(self, seed: int) -> nnx.Module:
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

    @staticmethod
    def _split(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays by path: parameters, and everything else that is not a random key."""
        params: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for path, leaf in nnx.to_flat_state(state):
            if isinstance(leaf, nnx.Param):
                params[_key(path)] = leaf[...]
            elif not isinstance(leaf, nnx.RngState):
                rest[_key(path)] = leaf[...]
        return params, rest


def _key(path: tuple[Any, ...]) -> str:
    return "-".join(map(str, path))
