"""The table of architectures: one row a name, one function that creates by name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.layers import Classifier
from jaxkd.models.mobilenet import MOBILENETS
from jaxkd.models.resnet import IMAGENET_RESNETS, RESNETS
from jaxkd.models.shufflenet import SHUFFLENETS
from jaxkd.models.vgg import VGGS
from jaxkd.models.wide_resnet import WIDE_RESNETS

_MODELS: dict[str, Callable[..., Classifier]] = {
    **RESNETS,
    **WIDE_RESNETS,
    **VGGS,
    **MOBILENETS,
    **SHUFFLENETS,
    **IMAGENET_RESNETS,
}


def names() -> tuple[str, ...]:
    """The names that `create` accepts.

    >>> from jaxkd import models
    >>> "resnet56" in models.names()
    True
    """
    return tuple(_MODELS)


def create(name: str, num_classes: int = 100, dtype: Any = jnp.float32, **options: Any) -> Classifier:
    """Creates a network by name.

    Args:
      name: one of `names()`.
      num_classes: number of logits, at least 2.
      dtype: of the activations; parameters, batch statistics and logits stay float32.
      **options: further attributes of the module: `axis_name` and `param_dtype` of all, `shortcut="A"`
        of the ResNets.

    Returns:
      A Flax Linen module.  `module.apply(variables, images, train=False)` maps normalised images
      `[B, H, W, C]` to an `Outputs`.

    Raises:
      ValueError: the name or an option is unknown, or there are fewer than two classes.

    >>> from jaxkd import models
    >>> model = models.create("resnet8", num_classes=10)
    >>> variables = models.initialize(model, seed=0, image_shape=(32, 32, 3))
    >>> outputs = model.apply(variables, jnp.zeros((2, 32, 32, 3)))
    >>> outputs.logits.shape, outputs.features["stage3"].shape
    ((2, 10), (2, 8, 8, 64))
    """
    if name not in _MODELS:
        near = _nearest(name)
        hint = f'did you mean "{near}"? Accepted' if near else "accepted"
        raise ValueError(f'unknown model "{name}"; {hint}: {", ".join(_MODELS)}')
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    make = _MODELS[name]
    if unknown := options.keys() - (accepted := _options(make)):
        raise ValueError(
            f"{name} has no option {', '.join(sorted(unknown))}; accepted: {', '.join(accepted)}"
        )
    return make(num_classes=num_classes, dtype=dtype, **options)


def initialize(
    model: nn.Module,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
    method: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Draws a network's variables without running the network.

    Args:
      model: what `create` returned.
      seed: the draw is a function of it and of the parameter's name.
      image_shape: height, width, channels.
      method: `(model, images) -> result`, how it is called; by default `model(images)`.

    Returns:
      A dictionary of collections ("params", "batch_stats"), what `model.init` gives with a threefry
      key of the seed.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = dict(model.lazy_init(jax.random.key(seed, impl="threefry2x32"), images, method=method))
    return jax.tree.map(jnp.asarray, variables)  # constants come as arrays of a private type of JAX


def _options(make: Callable[..., Classifier]) -> tuple[str, ...]:
    """What may be given to `create` besides the number of classes and the type."""
    network: Any = make.func if isinstance(make, functools.partial) else make
    fields = {field.name for field in dataclasses.fields(network)}
    return tuple(option for option in ("axis_name", "param_dtype", "shortcut") if option in fields)


def _nearest(name: str) -> str | None:
    """The name that was meant, if that can be guessed: case and punctuation do not count."""
    plain = {_plain(known): known for known in _MODELS}
    wanted = _plain(name)
    longer = [known for known in plain if wanted and known.endswith(wanted)]
    near = longer or difflib.get_close_matches(wanted, plain, n=1)
    return plain[min(near, key=len)] if near else None


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
