"""Pretrained networks: save, load, import from PyTorch files.

A teacher is a folder: the variables as an Orbax checkpoint, and `teacher.json`, which says what they are.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkd._extras import require
from jaxkd._paths import cache_folder

require("train", "flax", "orbax", "safetensors")

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from jaxkd import models, storage, torch_files  # noqa: E402
from jaxkd.data import normalize  # noqa: E402
from jaxkd.models.torch_names import to_flax, unwrap  # noqa: E402

_FORMAT = 1
_DESCRIPTION = "teacher.json"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a teacher's folder says of it.

    Attributes:
      model: the architecture's name in `jaxkd.models`.
      num_classes: number of logits.
      image_shape: height, width and channels that it was trained on.
      mean: of each channel, as its inputs were normalised.
      std: likewise.
      data: the data set that it was trained on.
      test_accuracy: top-1 on the whole test split, in percent; None if it was not measured.
      source: where the weights come from.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    test_accuracy: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        channels = self.image_shape[-1]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"mean and std need one value for each of {channels} channels, got {self.mean} and {self.std}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A pretrained network, ready to use.

    Attributes:
      name: for tables.
      description: what it is.
      variables: its parameters and batch statistics.
      digest: the hash of the variables.
    """

    name: str
    description: Description
    variables: Mapping[str, Any]
    digest: str

    @property
    def num_classes(self) -> int:
        """How many logits it has."""
        return self.description.num_classes

    @functools.cached_property
    def model(self) -> nn.Module:
        """The Flax module."""
        return models.create(self.description.model, self.num_classes)

    def logits(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Logits `[B, K]` of images `[B, H, W, C]`: uint8, or floats that are normalised already."""
        return self._outputs(images).logits

    def features(self, images: jax.typing.ArrayLike) -> Mapping[str, jax.Array]:
        """Named features of images, given as for `logits`."""
        return self._outputs(images).features

    def _outputs(self, images: jax.typing.ArrayLike) -> models.Outputs:
        images = jnp.asarray(images)
        if images.ndim != 4 or images.shape[-1] != self.description.image_shape[-1]:
            raise ValueError(
                f"images must be [B, H, W, {self.description.image_shape[-1]}], got {list(images.shape)}"
            )
        if not (images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
            raise TypeError(f"images must be uint8, or floats that are normalised, got {images.dtype}")
        return self._apply(self.variables, images)

    @functools.cached_property
    def _apply(self) -> Callable[[Mapping[str, Any], jax.Array], models.Outputs]:
        def apply(variables: Mapping[str, Any], images: jax.Array) -> models.Outputs:
            if images.dtype == jnp.uint8:
                images = normalize(images, self.description.mean, self.description.std)
            outputs: Any = self.model.apply(variables, images)
            return outputs

        return jax.jit(apply)


def zoo() -> Path:
    """The folder where teachers are looked up by name: `$JAXKD_TEACHERS`, or `~/.cache/jaxkd/teachers`."""
    return Path(os.environ.get("JAXKD_TEACHERS") or cache_folder() / "teachers")


def save(folder: str | Path, variables: Mapping[str, Any], description: Description) -> None:
    """Saves a network as a teacher.

    Args:
      folder: where; it is made, and the teacher in it replaced.
      variables: `{"params": ..., "batch_stats": ...}`.
      description: what they are.
    """
    folder = Path(folder)
    digest = storage.save_tree(folder / "variables", dict(variables))
    storage.write_json(
        folder / _DESCRIPTION, {"format": _FORMAT, **dataclasses.asdict(description), "digest": digest}
    )


def locate(path_or_name: str | Path) -> Path:
    """Finds the folder of a teacher; arguments and errors are those of `load`."""
    candidates = [Path(path_or_name), Path(path_or_name) / "model", zoo() / path_or_name]
    for folder in candidates:
        if (folder / _DESCRIPTION).is_file():
            return folder
    raise FileNotFoundError(
        f'no teacher "{path_or_name}": looked for {_DESCRIPTION} in {", ".join(map(str, candidates))}; '
        "train one with `jaxkd train`, or bring one with `jaxkd import`"
    )


def load(path_or_name: str | Path) -> Teacher:
    """Loads a teacher.

    Args:
      path_or_name: the folder of a teacher, the folder of a run that trained one, or a name in the zoo.

    Returns:
      The teacher: `.logits(images)`, `.features(images)`, `.name`, `.num_classes`.

    Raises:
      FileNotFoundError: there is no teacher there.
      ValueError: it is damaged, or of a format that this version does not know.
    """
    folder = locate(path_or_name)
    fields = json.loads((folder / _DESCRIPTION).read_text())
    if fields.pop("format", None) != _FORMAT:
        raise ValueError(f"{folder / _DESCRIPTION} is not of format {_FORMAT}; save the teacher again")
    digest = fields.pop("digest")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    description = Description(**fields)
    shapes = _shapes(description.model, description.num_classes, description.image_shape)
    variables = storage.load_tree(folder / "variables", shapes, digest)
    name = folder.parent.name if folder.name == "model" else folder.name
    return Teacher(name, description, variables, digest)


def import_torch(
    file: str | Path,
    *,
    model: str,
    num_classes: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> dict[str, Any]:
    """Reads the weights of a PyTorch network, without PyTorch and without running what is in the file.

    Args:
      file: `.pt`, `.pth`, `.th`, `.safetensors` or `.npz`, with the parameter names of RepDistiller,
        mdistiller or pytorch-cifar-models.
      model: the architecture's name in `jaxkd.models`.
      num_classes: number of logits.
      image_shape: height, width and channels of its images.

    Returns:
      Flax variables, ready for `models.create(model, num_classes).apply`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged or unsafe, or its weights do not fit the model (all misfits are listed).
    """
    weights = unwrap(torch_files.read(file))
    shapes = _shapes(model, num_classes, image_shape)
    try:
        return to_flax(weights, shapes)
    except ValueError as error:
        raise ValueError(f"{file} as {model} with {num_classes} classes: {error}") from None


def describe_import(
    file: str | Path, model: str, num_classes: int, data: str, mean: Sequence[float], std: Sequence[float]
) -> Description:
    """The description of a network that was imported from a file.

    >>> describe_import("weights/net.pt", "resnet8", 10, "cifar10", (0.5,) * 3, (0.25,) * 3).source
    'imported from net.pt'
    """
    shape = (32, 32, len(tuple(mean)))
    return Description(
        model, num_classes, shape, tuple(mean), tuple(std), data, source=f"imported from {Path(file).name}"
    )


def _shapes(model: str, num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    network = models.create(model, num_classes)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return dict(jax.eval_shape(network.init, jax.random.key(0), images))
