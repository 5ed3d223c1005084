"""Teachers from PyTorch files, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd import models, storage
from jaxkd.models import torch_find, torch_names
from jaxkd.teachers import hub, torch_files
from jaxkd.teachers.teacher import Description, Teacher

# Keys in a .safetensors file's metadata: the description, and a checksum of the contents.
_METADATA, _CHECKSUM = "jaxkd", "jaxkd_sha256"


def import_torch(
    file: str | Path,
    *,
    model: str,
    num_classes: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    rename: Mapping[str, str] | None = None,
    prefix: str | None = None,
    **model_options: Any,
) -> dict[str, Any]:
    """Reads the weights of a PyTorch network, without PyTorch and without executing the file.

    Args:
      file: a PyTorch file, `.safetensors` or `.npz`, or `hf:OWNER/NAME` on the Hugging Face Hub, with the
        parameter names of RepDistiller, mdistiller, the ResNets of pytorch-cifar-models or pytorch-cifar, or
        torchvision's and timm's ResNets for `imagenet_resnet*`.
      model: the architecture's name in `jaxkd.models`.
      num_classes: number of logits.
      image_shape: height, width and channels of its images.
      rename: maps words in the file's names to the model's, such as `{"stage_1": "layer1", "conv": "conv1"}`:
        whole words between dots, or several joined with dots.
      prefix: the prefix of the weights in the file, if they fit in several places.
      **model_options: other options of `models.create`, such as `shortcut="A"`.

    Returns:
      Flax variables, ready for `models.create(model, num_classes, **model_options).apply`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged or unsafe, or its weights do not fit the model (all mismatches are listed).
    """
    file, given = hub.local(file), file
    contents, texts = torch_files.read(file), torch_files.read_metadata(file)
    if _CHECKSUM in texts and texts[_CHECKSUM] != _checksum(texts.get(_METADATA, ""), contents):
        raise storage.DamagedError(f"{file} is damaged: checksum mismatch; export the teacher again")
    try:
        shapes = variable_shapes(models.create(model, num_classes, **model_options), image_shape)
        weights = torch_find.find(contents, shapes, rename=rename, prefix=prefix)
        return torch_names.to_flax(weights, shapes)
    except ValueError as error:
        raise ValueError(f"{given} as {model} with {num_classes} classes: {error}") from None


def export_torch(teacher: Teacher, file: str | Path) -> None:
    """Writes a teacher's weights with PyTorch's names and layout.

    The description is in the file's metadata, so that `jaxkd import` needs no options, and gives the same
    bits back.

    Args:
      teacher: with one of the package's models.
      file: a `.safetensors` file to write; torch reads it with `safetensors.torch.load_file`.

    Raises:
      ValueError: the file does not end in .safetensors, or the teacher is a function.
    """
    if teacher.forward is not None:
        other = teacher.description.method
        what = f"answers through {other['name']}" if other else "is a function"
        raise ValueError(f"teacher {teacher.name} {what}; only the package's models can be exported")
    about = json.dumps(dataclasses.asdict(teacher.description))
    weights = torch_names.to_torch(teacher.variables)
    torch_files.write(file, weights, {_METADATA: about, _CHECKSUM: _checksum(about, weights)})


def _checksum(about: str, weights: Mapping[str, Any]) -> str:
    """SHA-256 of an exported file's contents: the description, as text, and the weights."""
    return storage.tree_digest(
        {"description": np.frombuffer(about.encode(), np.uint8), "weights": dict(weights)}
    )


def described_in(file: str | Path) -> Description | None:
    """The description in a weights file; None if it has none.

    Args:
      file: written by `export_torch`, or with timm's `config.json` beside it, or `hf:OWNER/NAME`.

    Raises:
      ValueError: the description is invalid, or of an unsupported architecture.
    """
    path = hub.local(file)
    about = torch_files.read_metadata(path).get(_METADATA)
    try:
        if about is not None:
            return Description.from_json(json.loads(about))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} describes itself wrongly: {error}") from None
    if (fields := hub.beside(path)) is None:
        return None
    revision = hub.revision_of(path)
    source = f"{file}{f' at {revision[:12]}' if revision else ''}"
    data = "imagenet2012" if fields["num_classes"] == 1000 else "unknown"
    return Description(**fields, data=data, source=source)


def variable_shapes(network: Any, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The shapes of a network's variables, in the order in which its layers are created."""
    order: list[tuple[str, ...]] = []

    def init(key: jax.Array, images: jax.Array) -> Any:
        variables = network.init(key, images)
        order.extend(flatten_dict(dict(variables)))
        return variables

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = flatten_dict(dict(jax.eval_shape(init, jax.random.key(0), images)))  # which sorts them
    return unflatten_dict({path: shapes[path] for path in order})
