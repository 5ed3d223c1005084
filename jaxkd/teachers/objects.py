"""Teachers from users' objects: functions, networks, checkpoints, Keras models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import models, storage
from jaxkd.teachers import foreign
from jaxkd.teachers.teacher import Description, Teacher


@dataclasses.dataclass(frozen=True)
class _Function:
    """Any function of images in place of a module; see `from_function`."""

    function: Callable[..., Any]
    num_classes: int
    traceable: bool

    def apply(self, variables: Any, images: jax.Array) -> models.Outputs:
        if self.traceable:
            return self._call(variables, images)
        logits = jax.ShapeDtypeStruct((images.shape[0], self.num_classes), jnp.float32)
        return models.Outputs(
            jax.pure_callback(self._on_host, logits, variables, images, vmap_method="sequential"), {}
        )

    def _call(self, variables: Any, images: Any) -> models.Outputs:
        result = self.function(images) if variables is None else self.function(variables, images)
        outputs = result
        if not isinstance(result, models.Outputs):
            outputs = models.Outputs(getattr(result, "logits", result), {})
        wanted, got = (images.shape[0], self.num_classes), getattr(outputs.logits, "shape", None)
        if got != wanted:
            found = type(result).__name__ if got is None else list(got)
            raise ValueError(f"the teacher's logits must be {list(wanted)}, got {found}")
        return outputs

    def _on_host(self, variables: Any, images: Any) -> np.ndarray:
        variables, images = jax.tree.map(np.asarray, (variables, images))
        return np.asarray(self._call(variables, images).logits, np.float32)


def from_function(
    function: Callable[..., Any],
    *,
    num_classes: int,
    variables: Any = None,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str = "function",
    traceable: bool = True,
) -> Teacher:
    """Makes a teacher from any function: another Flax network, an ensemble, a remote service.

    Args:
      function: `(images) -> logits`, or `(variables, images) -> logits` if there are variables.  Images are
        normalised floats `[B, H, W, C]`; the result is logits `[B, K]`, an `Outputs`, or any object with
        `.logits`.
      num_classes: number of logits, K.
      variables: arrays that the function needs, as a tree.  Arrays in a closure are compiled into the program
        instead, which costs memory.
      image_shape: height, width and channels.
      mean: mean of each channel, for normalisation; by default 0, so that pixels are in [0, 1].
      std: standard deviation of each channel; by default 1.
      name: for tables; a run identifies the teacher by its name and its variables.
      traceable: False if JAX cannot trace the function (another framework, a network); it then gets NumPy
        arrays, and is called from inside the compiled step.

    Returns:
      A teacher for `teacher.logits(images)` and for `jaxkd.distill(teacher=teacher)`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import teachers
    >>> weights = {"w": jnp.ones((8 * 8, 3))}
    >>> linear = lambda variables, images: images.reshape(len(images), -1) @ variables["w"]
    >>> teacher = teachers.from_function(linear, num_classes=3, variables=weights, image_shape=(8, 8, 1))
    >>> teacher.logits(jnp.full((2, 8, 8, 1), 255, jnp.uint8)).tolist()
    [[64.0, 64.0, 64.0], [64.0, 64.0, 64.0]]
    """
    channels = image_shape[-1]
    description = Description(
        model="function",
        num_classes=num_classes,
        image_shape=image_shape,
        mean=(0.0,) * channels if mean is None else tuple(map(float, mean)),
        std=(1.0,) * channels if std is None else tuple(map(float, std)),
        data="unknown",
        source=f"the function {getattr(function, '__qualname__', type(function).__name__)}",
    )
    # A tree without arrays would have the same digest for every name.
    digest = storage.tree_digest({name: variables if jax.tree.leaves(variables) else np.zeros(0)})
    forward = models.Evaluated(_Function(function, num_classes, traceable))
    return Teacher(name, description, variables, digest, forward)


def from_network(
    network: models.Like,
    variables: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
    data: str = "unknown",
) -> Teacher:
    """Makes a teacher from a Flax Linen module, an NNX module or a `Network`, and its variables.

    Args:
      network: any argument of `models.as_network` except a name.
      variables: by collection, as returned by the network's `init`.  Those of an NNX module may be its
        `nnx.state`, too, or nested.  Empty collections are left out.
      image_shape: height, width and channels.
      mean: mean of each channel of pixels in [0, 1], for normalisation; by default the network's own, or 0.
      std: standard deviation of each channel; by default the network's own, or 1.
      name: for tables; by default the network's.
      data: the dataset that it was trained on.

    >>> import flax.linen as nn
    >>> from jaxkd import models, teachers
    >>> class Tiny(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(3)(x.reshape(len(x), -1))
    >>> network = models.from_linen(Tiny())
    >>> teacher = teachers.from_network(network, network.init(0, (4, 4, 1)), image_shape=(4, 4, 1))
    >>> teacher.name, teacher.num_classes
    ('Tiny', 3)
    """
    made = models.as_network(network, 2)
    variables = made.forward.variables(variables)
    channels = image_shape[-1]
    outputs = made.output_shapes(variables, image_shape)
    description = Description(
        model=made.name,
        num_classes=outputs.logits.shape[-1],
        image_shape=image_shape,
        mean=_first(mean, made.mean, (0.0,) * channels),
        std=_first(std, made.std, (1.0,) * channels),
        data=data,
        source="an own network",
        own=True,
    )
    digest = storage.tree_digest(variables)
    return Teacher(name or made.name, description, variables, digest, made.forward)


def _first(*values: Sequence[float] | None) -> tuple[float, ...]:
    """The first that is given, as numbers of Python."""
    return tuple(map(float, next(one for one in values if one is not None)))


def from_checkpoint(
    path: str | Path,
    network: models.Like,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int = 2,
    prefix: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
    data: str = "unknown",
    **model_options: Any,
) -> Teacher:
    """Makes a teacher from a Flax Linen or NNX checkpoint that another program saved.

    Args:
      path: an Orbax folder (of a checkpointer, or of a manager: then its last step), or a Flax msgpack file.
        Optimiser states and other contents are ignored.
      network: a Flax Linen module, an NNX module, a `Network`, or one of `models.names()`.
      image_shape: height, width and channels.
      num_classes: number of logits, for a name.
      prefix: the prefix of the variables in the checkpoint, such as "ema"; by default the only one under
        which they fit.
      mean: mean of each channel of pixels in [0, 1], for normalisation; by default the network's own, or 0.
      std: standard deviation of each channel; by default the network's own, or 1.
      name: for tables; by default the network's.
      data: the dataset that it was trained on.
      **model_options: other options of `models.create`, for a name, such as `shortcut="A"`.

    Raises:
      FileNotFoundError: `path` does not exist.
      ValueError: it is not a checkpoint, or the network's variables are not in it, or in several places.
    """
    if model_options and not isinstance(network, str):
        raise TypeError(f"{', '.join(model_options)}: an own network has its options already")
    module = models.create(network, num_classes, **model_options) if isinstance(network, str) else network
    made = models.as_network(module, num_classes)
    if isinstance(network, str):
        made = dataclasses.replace(made, name=network)
    shapes = jax.eval_shape(lambda: made.init(0, image_shape))
    try:
        variables = foreign.find(foreign.read(Path(path).expanduser()), shapes, prefix=prefix)
    except ValueError as error:
        raise ValueError(f"{path} as {made.name}: {error}") from None
    teacher = from_network(made, variables, image_shape=image_shape, mean=mean, std=std, name=name, data=data)
    about = dataclasses.replace(
        teacher.description,
        source=f"from the checkpoint {Path(path).name}",
        model_options=model_options,
        own=not isinstance(network, str),
    )
    forward = None if isinstance(network, str) else teacher.forward
    return dataclasses.replace(teacher, description=about, forward=forward)


def from_keras(
    model: Any,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> Teacher:
    """Makes a teacher from a Keras 3 model whose last layer returns logits.

    With Keras's JAX backend the model is traced into the training step, and its weights are variables of it.
    With another backend it is called from inside the step, on the host.

    Args:
      model: a `keras.Model` with one image input and one output, `[B, H, W, C]` to `[B, K]`.
      mean: mean of each channel of pixels in [0, 1], for normalisation; by default 0.
      std: standard deviation of each channel; by default 1, so that pixels are in [0, 1].  For models that
        take pixels from 0 to 255 (those with a `Rescaling` layer): `std=(1 / 255,) * 3`.
      name: for tables; by default the model's.

    Raises:
      ValueError: the model ends in a softmax or a sigmoid, or has other inputs or outputs.
    """
    shape, output = tuple(model.input_shape), tuple(model.output_shape)
    if len(shape) != 4 or None in shape[1:] or len(output) != 2 or output[1] is None:
        raise ValueError(
            f"the model must map images [B, H, W, C] of known size to logits [B, K], got {shape} and {output}"
        )
    activation = getattr(getattr(model.layers[-1], "activation", None), "__name__", "linear")
    if activation in ("softmax", "sigmoid"):
        raise ValueError(
            f"the model ends in a {activation}, but a teacher must return logits; remove it with "
            'model.layers[-1].activation = keras.activations.get("linear")'
        )
    import keras

    about: dict[str, Any] = {
        "num_classes": output[1],
        "image_shape": shape[1:],
        "mean": mean,
        "std": std,
        "name": name or model.name,
    }
    weights = [
        [v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    if keras.backend.backend() == "jax":

        def logits(variables: Any, images: Any) -> Any:
            return model.stateless_call(*variables, images, training=False)[0]

        return from_function(logits, variables=jax.tree.map(jnp.asarray, weights), **about)
    arrays = [[keras.ops.convert_to_numpy(value) for value in group] for group in weights]
    return from_function(
        lambda _, images: keras.ops.convert_to_numpy(model(images, training=False)),
        variables=arrays,
        traceable=False,
        **about,
    )
