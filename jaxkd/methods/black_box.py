"""MEKD: distils a teacher that gives only answers, on generated images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.files.places import place
from jaxkd.methods.base import NOT_NEGATIVE, POSITIVE, Inputs, Method, Range, Terms
from jaxkd.metrics import Percentage
from jaxkd.models.dcgan import Generator

if TYPE_CHECKING:
    from jaxkd.data.augment import Augmentation

GENERATED = "generated"


@dataclasses.dataclass(frozen=True)
class Generated:
    """A generated image in place of a real one: an `Augmentation` that uses only its key.

    Attributes:
      digest: identifies the generator.
      generator: the module.
      variables: its variables.
      latent: length of the latent vector.
    """

    digest: str
    generator: Generator
    latent: int
    variables: Any = dataclasses.field(compare=False, repr=False)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """See `jaxkd.data.Augmentation`."""
        latent = jax.random.normal(key, (1, self.latent))
        return as_pixels(self.generator.apply(self.variables, latent)[0])


class MEKD(Method):
    """MEKD: compares the answers of student and teacher through the images that a generator makes of them.

    It has two stages.  In the first a generator learns to make images from noise (`jaxkd generator`); in the
    second, which is this method, the student sees only its images.  An epoch has as many of them as the
    training set; the real images and their labels are not used, and the training accuracy is meaningless.

    Attributes:
      generator: the folder of the first stage; from Python, also the `Generated` itself.
      hard: whether only the teacher's top class is known.
      distance: distance of the generated images, l1 (mean absolute difference) or l2 (mean squared
        difference).
      image_weight: weight of that distance.
      kl_weight: weight of T times the KL divergence.
      temperature: T of the divergence.
      generator_temperature: divides the logits before the generator.
    """

    generator: Any = ""
    hard: bool = False
    distance: Literal["l1", "l2"] = "l1"
    image_weight: float = 1.0
    kl_weight: float = 1.0
    temperature: float = 5.0
    generator_temperature: float = 5.0

    views: ClassVar[tuple[str, ...]] = (GENERATED,)
    learns: ClassVar[str] = "a generator, in a stage before"
    ranges: ClassVar[Mapping[str, Range]] = {
        "image_weight": NOT_NEGATIVE,
        "kl_weight": NOT_NEGATIVE,
        "temperature": POSITIVE,
        "generator_temperature": POSITIVE,
    }

    def __post_init__(self) -> None:
        if self.generator and isinstance(self.generator, str | Path):
            self.generator = str(place(self.generator).absolute())  # a run may resume from another folder
        super().__post_init__()

    def augmentation(self, view: str, main: Augmentation) -> Augmentation:
        """The generator's images."""
        return self._stage()

    def constants(self, teacher: Any, student: Any, dataset: Any) -> Mapping[str, Any]:
        """The generator's variables, and an image for its shape.

        Raises:
          ValueError: the generator has another image shape or another number of classes.
        """
        made = self._stage()
        found, wanted = (made.generator.image_shape, made.latent), (dataset.image_shape, dataset.num_classes)
        if found != wanted:
            raise ValueError(
                f"the generator {self.generator} makes images {found[0]} for {found[1]} classes, but "
                f"{dataset.name} has images {wanted[0]} of {wanted[1]}; train one with `jaxkd generator "
                f"--data {dataset.name}`"
            )
        return {"generator": made.variables, "image": np.zeros(made.generator.image_shape, np.float32)}

    def __call__(self, x: Inputs) -> Terms:
        """Returns the terms "image" and "kl", and how often both choose the same class."""
        s, t = x.student[GENERATED].logits, x.teacher[GENERATED].logits
        chosen = jnp.argmax(t, -1)
        if self.hard:
            t = jax.nn.one_hot(chosen, t.shape[-1], dtype=t.dtype)
        variables: Any = self.get_variable("constants", "generator")
        shape: Any = self.get_variable("constants", "image").shape
        width = variables["params"]["conv_blocks_2"]["kernel"].shape[-1]
        generator = Generator(shape, width, parent=None)
        images: list[Any] = [generator.apply(variables, z / self.generator_temperature) for z in (s, t)]
        difference = images[0] - jax.lax.stop_gradient(images[1])
        size = jnp.abs(difference) if self.distance == "l1" else jnp.square(difference)
        tau = jnp.full_like(s[..., :1], self.temperature)
        kl = losses.kd(s, t, temperature=lambda *_: tau) / self.temperature
        return Terms(
            {"image": (jnp.mean(size, (1, 2, 3)), self.image_weight), "kl": (kl, self.kl_weight)},
            {"agreement": Percentage.of((jnp.argmax(s, -1) == chosen).astype(jnp.float32), x.where)},
        )

    def _stage(self) -> Generated:
        from jaxkd.runs.generator import load_generator

        if isinstance(self.generator, Generated):
            return self.generator
        if not self.generator:
            raise ValueError(
                "mekd needs the generator of its first stage: train it with `jaxkd generator --teacher ... "
                "--data ... --out FOLDER`, and pass --method.generator FOLDER"
            )
        return load_generator(place(self.generator))


def as_pixels(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as uint8."""
    return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


def from_pixels(images: jax.Array) -> jax.Array:
    """uint8 images in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1
