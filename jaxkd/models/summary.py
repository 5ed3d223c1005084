"""What a network is, found by tracing it: numbers of parameters and operations, and shapes of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import _markdown
from jaxkd.models.registry import create


@dataclasses.dataclass(frozen=True)
class Summary:
    """A network in numbers.

    Attributes:
      name: of the architecture.
      num_classes: number of logits.
      image_shape: height, width, channels.
      parameters: how many numbers are trained.
      statistics: how many numbers batch norm keeps.
      macs: multiply-adds of the convolutions and linear layers for one image.
      features: shape of each feature for one image; `[H, W, C]`, pooled `[C]`.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    parameters: int
    statistics: int
    macs: int
    features: Mapping[str, tuple[int, ...]]


def describe(
    name: str, num_classes: int = 100, image_shape: tuple[int, int, int] = (32, 32, 3), **options: Any
) -> Summary:
    """Describes a network without making it: nothing is drawn, compiled or run.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      image_shape: height, width, channels.
      **options: of `create`.

    Raises:
      ValueError: as `create`; or the images are too small for the network.

    >>> from jaxkd import models
    >>> resnet8 = models.describe("resnet8")
    >>> resnet8.parameters, round(resnet8.macs / 1e6, 2), resnet8.features["stage3"]
    (83892, 12.51, (8, 8, 64))
    """
    network = create(name, num_classes, **options)
    macs = 0

    def count_macs(
        call: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        nonlocal macs
        y = call(*args, **kwargs)
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, nn.Conv | nn.Dense):
            # Every output is a product with all of the kernel that belongs to its channel.
            macs += y.size // layer.features * layer.get_variable("params", "kernel").size
        return y

    with nn.intercept_methods(count_macs):
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return Summary(
        name=name,
        num_classes=num_classes,
        image_shape=image_shape,
        parameters=_size(variables["params"]),
        statistics=_size(variables.get("batch_stats", {})),
        macs=macs,
        features={
            name: outputs.features[name].shape[1:]
            for name in sorted(outputs.features, key=_place)
            if name not in ("last", "cam")  # the last map once more, and what the last layer makes of it
        },
    )


def table(summaries: Sequence[Summary]) -> str:
    """A Markdown table with a row for each network."""
    head = ("model", "classes", "image", "parameters", "statistics", "MACs (M)", "last map")
    rows = [
        (
            summary.name,
            f"{summary.num_classes}",
            _shape(summary.image_shape),
            f"{summary.parameters:,}",
            f"{summary.statistics:,}",
            f"{summary.macs / 1e6:,.2f}",
            _shape([shape for name, shape in summary.features.items() if name.startswith("stage")][-1]),
        )
        for summary in summaries
    ]
    return _markdown.table(head, rows, left=1)


def details(summary: Summary) -> str:
    """A Markdown table of a network's features."""
    rows = [(name, _shape(shape)) for name, shape in summary.features.items()]
    return _markdown.table((f"feature of {summary.name}", "shape"), rows, left=1)


def _place(feature: str) -> tuple[bool, bool, str]:
    """Sorts features in the order in which they come about."""
    return feature == "pooled", feature != "stem", feature


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
