"""A teacher: a network with its description."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import models, storage
from jaxkd.teachers import record


@dataclasses.dataclass(frozen=True)
class Description:
    """The description in a teacher's folder.

    Attributes:
      model: the architecture's name in `jaxkd.models`; "function" for any other function.
      num_classes: number of logits.
      image_shape: height, width and channels of its training images.
      mean: mean of each channel, for the normalisation of its inputs.
      std: standard deviation of each channel.
      data: the dataset that it was trained on.
      test_accuracy: top-1 on the whole test split, in percent; None if it was not measured.
      source: the origin of the weights.
      model_options: other options of `models.create`, such as `{"shortcut": "A"}`.
      own: whether the network is a user's own, so that `load` needs it in addition to the folder.
      method: the method that predicts in the network's place, such as
        `{"name": "simkd", "options": {...}}`; empty for none.  The variables are then
        `{"student": ..., "method": ...}`.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    test_accuracy: float | None = None
    source: str = ""
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: bool = False
    method: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = self.image_shape[-1]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"mean and std need one value for each of {channels} channels, got {self.mean} and {self.std}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Description:
        """The description from the JSON of its `dataclasses.asdict`.

        Raises:
          ValueError: a field is missing, unknown or has the wrong type.
        """
        return cls(**record.checked(fields))

    def create_model(self) -> Any:
        """The described network, without weights.

        Raises:
          ValueError: there is no such network, or it has no such options.
        """
        try:
            return models.create(self.model, self.num_classes, **self.model_options)
        except TypeError as error:
            raise ValueError(f"model_options {dict(self.model_options)} do not fit: {error}") from None


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A pretrained network, ready to use.

    Attributes:
      name: for tables.
      description: its description.
      variables: its parameters and batch statistics.
      digest: the hash of the variables.
      forward: its functions; by default those of the described model.
      resize: the height and width that its images are resized to, in pixels; see `at_size`.
    """

    name: str
    description: Description
    variables: Any
    digest: str
    forward: models.Forward | None = None
    resize: int | None = None

    @property
    def module(self) -> str:
        """A user's own network in a line, which identifies it beside its variables; empty for others."""
        if self.forward is None or not self.description.own:
            return ""
        return " ".join(map(str, self.forward.describe().values()))

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.description.num_classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that its network sees, if they have its own size."""
        height, width, channels = self.description.image_shape
        return (height, width, channels) if self.resize is None else (self.resize, self.resize, channels)

    def require_fit(self, dataset: Any) -> None:
        """Raises ValueError, naming the difference, unless the network fits a `jaxkd.data.Dataset`."""
        if self.num_classes != dataset.num_classes:
            raise ValueError(
                f"teacher {self.name} has {self.num_classes} classes and {dataset.name} has "
                f"{dataset.num_classes}; they must be the same: choose a teacher trained on {dataset.name}"
            )
        channels = self.description.image_shape[-1]
        if channels != dataset.image_shape[-1]:
            raise ValueError(
                f"teacher {self.name} takes images with {channels} channels, but those of {dataset.name} "
                f"have {dataset.image_shape[-1]}; choose a teacher trained on {dataset.name}"
            )
        own, others = self.description.image_shape[:2], tuple(dataset.image_shape[:2])
        if self.resize is None and own != others and self.description.model != "function":
            logging.getLogger("jaxkd").warning(
                "teacher %s was trained on images of %s and sees those of %s unchanged, %s; "
                "--teacher-size %s (Teacher.at_size) resizes them",
                self.name, _by(own), dataset.name, _by(others), own[0],
            )  # fmt: skip

    def at_size(self, size: int) -> Teacher:
        """The same network, for images of any size: resizes them to its own, inside the compiled step.

        Args:
          size: the height and width that it sees, in pixels.

        Raises:
          ValueError: the size is not positive.

        >>> from jaxkd import teachers
        >>> small = teachers.load("digits-resnet20").at_size(8)
        >>> small.logits(jnp.zeros((1, 28, 28, 1), jnp.uint8)).shape
        (1, 10)
        """
        if size < 1:
            raise ValueError(f"the size of a teacher's images must be at least 1, got {size}")
        digest = storage.tree_digest({"network": np.frombuffer(self.digest.encode(), np.uint8), "size": size})
        return dataclasses.replace(self, digest=digest, resize=size)

    @functools.cached_property
    def frozen(self) -> tuple[models.Network, Any]:
        """The fastest form for evaluation: a network, and its variables.

        Batch norm is folded into the convolutions of the package's own models.
        """
        about, forward, variables = self.description, self.forward, self.variables
        if forward is None:
            # Not in the caller's trace: the arrays are cached.
            with jax.ensure_compile_time_eval():
                folded, variables = models.fold(about.create_model(), self.variables, about.image_shape)
            forward = models.Evaluated(folded)
        if self.resize is not None:
            forward = _Resized(forward, self.resize)
        return models.Network(self.name, forward, about.mean, about.std), variables

    def logits(self, images: jax.typing.ArrayLike, *, normalized: bool = False) -> jax.Array:
        """The logits `[B, K]` of images.

        Args:
          images: uint8 `[B, H, W, C]`, or normalised floats: `(pixel / 255 - mean) / std`.
          normalized: confirms that floats are normalised.  Otherwise those that look like pixels are refused;
            under `jit`, where values are not known, all are.
        """
        return self._outputs(images, normalized).logits

    def features(self, images: jax.typing.ArrayLike, *, normalized: bool = False) -> Mapping[str, jax.Array]:
        """Named features of images, given as for `logits`."""
        return self._outputs(images, normalized).features

    def _outputs(self, images: jax.typing.ArrayLike, normalized: bool) -> models.Outputs:
        images = jnp.asarray(images)
        if images.ndim != 4 or images.shape[-1] != self.description.image_shape[-1]:
            raise ValueError(
                f"images must be [B, H, W, {self.description.image_shape[-1]}], got {list(images.shape)}"
            )
        if not (images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
            raise TypeError(f"images must be uint8, or normalised floats, got {images.dtype}")
        changes = any(self.description.mean) or set(self.description.std) != {1.0}
        if changes and not normalized and images.dtype != jnp.uint8:
            self._require_normalized(images)
        return self._apply(self.frozen[1], images)

    def _require_normalized(self, images: jax.Array) -> None:
        """Raises ValueError for floats that look like pixels, and for those whose values are not known."""
        if isinstance(images, jax.core.Tracer):
            raise ValueError(
                "images are floats inside of a traced function, where it cannot be seen whether they are "
                "normalised; pass uint8 pixels, or normalized=True"
            )
        if not images.size:
            return
        low, high = float(images.min()), float(images.max())
        if 0 <= low < high <= 1:
            raise ValueError(
                "images are floats from 0 to 1, which look like pixels / 255, not like normalised ones; "
                "pass uint8 pixels, or normalized=True"
            )
        mean, std = np.asarray(self.description.mean), np.asarray(self.description.std)
        bound = float(np.max(np.maximum(1 - mean, mean) / std))
        if (largest := max(-low, high)) > 10 * bound:
            raise ValueError(
                f"images are floats up to {largest:g}, and normalised pixels are at most {bound:.3g}; "
                "pass uint8 pixels, or normalized=True"
            )

    @functools.cached_property
    def _apply(self) -> Callable[[Any, jax.Array], models.Outputs]:
        network, _ = self.frozen
        return jax.jit(lambda variables, images: network.apply(variables, images)[0])


@dataclasses.dataclass(frozen=True)
class _Resized:
    """A network's functions, with images resized first; bilinear, with antialiasing."""

    forward: models.Forward
    size: int

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        return self.forward.init(seed, (self.size, self.size, image_shape[-1]))

    def __call__(
        self, variables: Any, images: jax.Array, **how: Any
    ) -> tuple[models.Outputs, Mapping[str, Any]]:
        batch, *sides, channels = images.shape
        if sides != [self.size, self.size]:
            images = jax.image.resize(images, (batch, self.size, self.size, channels), "bilinear")
        return self.forward(variables, images, **how)

    def on_axis(self, axis_name: str | None) -> _Resized:
        return dataclasses.replace(self, forward=self.forward.on_axis(axis_name))

    def describe(self) -> dict[str, Any]:
        return {**self.forward.describe(), "image_size": self.size}

    def variables(self, given: Any) -> dict[str, Any]:
        return self.forward.variables(given)

    given: ClassVar[None] = None


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
