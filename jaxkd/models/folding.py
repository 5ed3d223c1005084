"""Batch norm folded into the convolutions before it, for networks that are only evaluated.

In evaluation batch norm is an affine map with constant coefficients, and a convolution followed by one is a
convolution with other weights: `scale / sqrt(var + eps) * (conv(x) - mean) + bias`.  Which batch norms alone
read a convolution's output is found by tracing the network, so that any Linen module can be folded, whatever
its blocks look like, as long as its parameters are used as they are (`nn.WeightNorm` changes them).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from jaxkd.models.layers import BatchNorm, Outputs

Path = tuple[str, ...]

_BIASES = "folded"  # the collection of the biases that convolutions without one get


@dataclasses.dataclass(frozen=True)
class Folded:
    """A network without the batch norms that could be folded; `fold` makes it, with its variables.

    Attributes:
      module: the network as it was.
      convolutions: paths of the convolutions that took in a batch norm.
      norms: paths of those batch norms.
    """

    module: nn.Module
    convolutions: frozenset[Path]
    norms: frozenset[Path]

    def apply(self, variables: Mapping[str, Any], images: jax.Array) -> Outputs:
        """Maps normalised images `[B, H, W, C]` to `Outputs`, in evaluation mode."""
        rest = {name: tree for name, tree in variables.items() if name != _BIASES}

        def skip_norms(
            call: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
        ) -> Any:
            path = context.module.path
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if path in self.norms:
                return args[0]
            y = call(*args, **kwargs)
            if path in self.convolutions and not context.module.use_bias:
                y += variables[_BIASES]["/".join(path)].astype(y.dtype)
            return y

        with nn.intercept_methods(skip_norms):
            outputs: Any = self.module.apply(rest, images)
        return outputs


def fold(
    module: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> tuple[Folded, dict[str, Any]]:
    """Folds batch norms into the convolutions before them.

    Args:
      module: any Linen network with `nn.Conv` and batch norms, ours or Flax's.
      variables: `{"params": ..., "batch_stats": ...}`.
      image_shape: height, width and channels of its images.

    Returns:
      The folded network and its variables: `folded.apply(variables, images)` equals
      `module.apply(variables, images)` up to rounding.

    >>> import jax
    >>> from jaxkd import models
    >>> model = models.create("resnet8", num_classes=10)
    >>> variables = models.initialize(model, seed=0, image_shape=(32, 32, 3))
    >>> folded, folded_variables = models.fold(model, variables, (32, 32, 3))
    >>> len(folded.norms), len(jax.tree.leaves(folded_variables)) < len(jax.tree.leaves(variables))
    (9, True)
    """
    pairs = _pairs(module, variables, image_shape)
    params = flax.traverse_util.flatten_dict(dict(variables["params"]))
    statistics = flax.traverse_util.flatten_dict(dict(variables.get("batch_stats", {})))
    biases = {}
    for conv, (norm, epsilon) in pairs.items():
        # In float64 on the host: once, and without additional rounding.
        mean, var = (np.asarray(statistics.pop((*norm, name)), np.float64) for name in ("mean", "var"))
        factor = np.asarray(params.pop((*norm, "scale"), 1.0), np.float64) / np.sqrt(var + epsilon)
        kernel = params[(*conv, "kernel")]
        old = np.asarray(params.get((*conv, "bias"), 0.0), np.float64)
        shift = np.asarray(params.pop((*norm, "bias"), 0.0), np.float64)
        bias = ((old - mean) * factor + shift).astype(kernel.dtype)
        params[(*conv, "kernel")] = (np.asarray(kernel, np.float64) * factor).astype(kernel.dtype)
        if (*conv, "bias") in params:
            params[(*conv, "bias")] = bias
        else:
            biases["/".join(conv)] = bias
    folded = {
        **variables,
        "params": flax.traverse_util.unflatten_dict(params),
        "batch_stats": flax.traverse_util.unflatten_dict(statistics),
        _BIASES: biases,
    }
    norms = frozenset(norm for norm, _ in pairs.values())
    return Folded(module, frozenset(pairs), norms), jax.device_put(folded)


def _pairs(
    module: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> dict[Path, tuple[Path, float]]:
    """Convolutions that only a batch norm reads: path to (path of the batch norm, its epsilon).

    The outputs of convolutions and the inputs of batch norms are named in the traced program, and the
    program is then read.
    """
    epsilons: dict[Path, float] = {}

    def name_values(
        call: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, nn.Conv):
            return checkpoint_name(call(*args, **kwargs), "conv " + "/".join(layer.path))
        if context.method_name == "__call__" and _normalises_last_axis(layer):
            epsilons[layer.path] = layer.epsilon
            args = (checkpoint_name(args[0], "norm " + "/".join(layer.path)), *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(name_values):
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        program = jax.make_jaxpr(module.apply)(dict(variables), images).jaxpr
    readers = Counter(v for eqn in program.eqns for v in eqn.invars if not isinstance(v, Literal))
    readers.update(v for v in program.outvars if not isinstance(v, Literal))
    named = [eqn for eqn in program.eqns if eqn.primitive.name == "name"]
    calls = Counter(eqn.params["name"] for eqn in named)  # a layer that is called twice stays as it is
    convolutions: dict[Any, Path] = {}
    pairs = {}
    for eqn in named:
        kind, _, words = eqn.params["name"].partition(" ")
        path, source = tuple(words.split("/")), eqn.invars[0]
        if calls[eqn.params["name"]] > 1:
            continue
        if kind == "conv":
            convolutions[eqn.outvars[0]] = path
        elif kind == "norm" and source in convolutions and readers[source] == 1:
            pairs[convolutions[source]] = (path, epsilons[path])
    return pairs


def _normalises_last_axis(layer: nn.Module) -> bool:
    return isinstance(layer, BatchNorm) or (isinstance(layer, nn.BatchNorm) and layer.axis == -1)
