"""The one shape of student and teacher: a network as pure functions of its variables.

A `Network` is made of a name, a Linen module, an NNX module or any function, and the trainer knows nothing
else.  Its variables are a dictionary of collections: "params" is trained, every other collection is carried
along as the network updates it, and none is required.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from jaxkd._names import describe_object
from jaxkd.models.layers import Outputs

AXIS = "devices"  # the name of the devices' axis in training

Variables = Mapping[str, Any]


class Forward(Protocol):
    """The functions behind a network; hashable, so that runs of one shape share their compiled programs."""

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """The variables at step 0."""
        ...

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        where: jax.Array | None,
        rngs: Mapping[str, jax.Array] | None,
    ) -> tuple[Outputs, Mapping[str, Any]]:
        """Outputs for normalised images, and the collections that training changed."""
        ...

    def on_axis(self, axis_name: str | None) -> Forward:
        """The same, with batch statistics in training over the devices' axis; None for each device alone."""
        ...

    def describe(self) -> dict[str, Any]:
        """Identifies it, besides its name and the shapes of its variables; ready for JSON."""
        ...

    def variables(self, given: Any) -> dict[str, Any]:
        """Variables that a user gives, in the form of those of `init`."""
        ...

    @property
    def given(self) -> Any:
        """The variables that it begins with whatever the seed is; None where the seed draws them."""
        ...


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Something with `apply(variables, images) -> Outputs`, as a network that is never trained."""

    module: Any

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Raises TypeError."""
        raise TypeError(f"{describe_object(self.module)} can be a teacher, but not a student")

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
        return self.module.apply(variables, images), {}

    def on_axis(self, axis_name: str | None) -> Evaluated:
        """See `Forward`."""
        return self

    def describe(self) -> dict[str, Any]:
        """See `Forward`."""
        return {"module": describe_object(self.module)}

    def variables(self, given: Any) -> dict[str, Any]:
        """See `Forward`."""
        return dict(given)

    given: ClassVar[None] = None


@dataclasses.dataclass(frozen=True)
class Network:
    """An image classifier as pure functions.

    Attributes:
      name: for tables, and for the run's identity.
      forward: its functions.
      mean: of each channel of pixels in [0, 1], for normalisation; None until a data set gives it.
      std: standard deviation of each channel.
    """

    name: str
    forward: Forward
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"network {self.name} has mean {self.mean} and std {self.std}; give both, or neither to take "
                "the data set's"
            )

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
        """The same network with a normalisation; its own goes first."""
        return self if self.mean is not None else dataclasses.replace(self, mean=mean, std=std)

    def on_axis(self, axis_name: str | None) -> Network:
        """The same network, with batch statistics in training over a mapped axis; None for none."""
        return dataclasses.replace(self, forward=self.forward.on_axis(axis_name))

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """The variables at step 0, a function of the seed."""
        return self.forward.init(seed, image_shape)

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool = False,
        where: jax.Array | None = None,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> tuple[Outputs, Mapping[str, Any]]:
        """Runs the network.

        Args:
          variables: by collection.
          images: uint8 `[B, H, W, C]`, which are normalised here; or floats that are normalised.
          train: whether it is in training mode.
          where: which examples are real and not padding, bool `[B]`, for batch statistics; None for all.
          rngs: keys by name ("dropout").

        Returns:
          The outputs, and the collections that changed; none in evaluation mode.
        """
        if images.dtype == jnp.uint8 and self.mean is not None:
            assert self.std is not None
            images = normalize(images, self.mean, self.std)
        return self.forward(variables, images, train=train, where=where, rngs=rngs)

    def output_shapes(
        self, variables: Variables, image_shape: tuple[int, int, int], batch_size: int = 1
    ) -> Outputs:
        """The shapes of what `apply` gives for so many images, without running anything."""
        images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
        return jax.eval_shape(lambda v, x: self.apply(v, x)[0], variables, images)

    def describe(self, variables: Variables) -> dict[str, Any]:
        """What identifies the network in a run: name, options, and a hash of its variables' shapes."""
        leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
        shapes = [f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}" for path, leaf in leaves]
        digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
        return {"name": self.name, **self.forward.describe(), "shapes": digest}


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """`(x / 255 - mean) / std` by channel: uint8 `[B, H, W, C]` to float32.

    >>> import jax.numpy as jnp
    >>> from jaxkd import models
    >>> print(models.normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), (0.5,), (0.25,)).ravel())
    [2.]
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
