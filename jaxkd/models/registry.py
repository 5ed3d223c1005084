"""The table of architectures: one row a name, one function that creates by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.resnet import RESNETS

_MODELS: dict[str, Callable[..., nn.Module]] = {**RESNETS}


def names() -> tuple[str, ...]:
    """The names that `create` knows.

    >>> from jaxkd import models
    >>> "resnet56" in models.names()
    True
    """
    return tuple(_MODELS)


def create(name: str, num_classes: int = 100, dtype: Any = jnp.float32, **options: Any) -> nn.Module:
    """Creates a network by name.

    Args:
      name: one of `names()`.
      num_classes: number of logits, at least 2.
      dtype: of the activations; parameters, batch statistics and logits stay float32.
      **options: further attributes of the module, such as `axis_name`.

    Returns:
      A Flax Linen module.  `module.apply(variables, images, train=False)` maps normalised images
      `[B, H, W, C]` to an `Outputs`.

    Raises:
      ValueError: the name is unknown, or there are fewer than two classes.

    >>> from jaxkd import models
    >>> model = models.create("resnet8", num_classes=10)
    >>> variables = models.initialize(model, seed=0, image_shape=(32, 32, 3))
    >>> outputs = model.apply(variables, jnp.zeros((2, 32, 32, 3)))
    >>> outputs.logits.shape, outputs.features["stage3"].shape
    ((2, 10), (2, 8, 8, 64))
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ValueError(f'unknown model "{name}"{hint} Accepted: {", ".join(_MODELS)}')
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    return _MODELS[name](num_classes=num_classes, dtype=dtype, **options)


def initialize(model: nn.Module, *, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Draws a network's variables without running the network.

    Args:
      model: what `create` returned.
      seed: the draw is a function of it and of the parameter's name.
      image_shape: height, width, channels.

    Returns:
      `{"params": ..., "batch_stats": ...}`, what `model.init` gives with a threefry key of the seed.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return dict(model.lazy_init(jax.random.key(seed, impl="threefry2x32"), images))
