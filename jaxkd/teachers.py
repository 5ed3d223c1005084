"""Teachers: pretrained networks with what has to be known of them, in a folder each.

A teacher is a description (`teacher.json`, see `jaxkd.teacher_files`), variables saved by Orbax, and the
digest of the variables.
Folders lie anywhere, or in the zoo, where they are found by name; a small one ships with the package.  Any
other function of images can be a teacher too, and PyTorch files become teachers and come of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd import foreign, hub, models, storage, teacher_files, torch_files
from jaxkd._paths import cache_folder
from jaxkd.files.places import is_remote, place
from jaxkd.files.whole import current, names_in
from jaxkd.models import torch_find, torch_names

# Where a .safetensors file carries the description, and a checksum of all that it holds.
_METADATA, _CHECKSUM = "jaxkd", "jaxkd_sha256"
_SHIPPED = Path(__file__).with_name("zoo")


@dataclasses.dataclass(frozen=True)
class Description:
    """What a teacher's folder says of it.

    Attributes:
      model: the architecture's name in `jaxkd.models`; "function" for any other function.
      num_classes: number of logits.
      image_shape: height, width and channels that it was trained on.
      mean: of each channel, as its inputs were normalised.
      std: likewise.
      data: the data set that it was trained on.
      test_accuracy: top-1 on the whole test split, in percent; None if it was not measured.
      source: where the weights come from.
      model_options: what `models.create` needs besides the name, such as `{"shortcut": "A"}`.
      own: whether the network is somebody's own, so that `load` needs it besides the folder.
      method: the method that answers in the network's place, such as
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
        """The description whose `dataclasses.asdict` went through JSON.

        Raises:
          ValueError: a field is missing, unknown or of another type.
        """
        return cls(**teacher_files.checked(fields))

    def create_model(self) -> Any:
        """The network described, without weights.

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
      description: what it is.
      variables: its parameters and batch statistics.
      digest: the hash of the variables.
      forward: its functions; by default those of the described model.
      resize: height and width that its images are resized to, pixels; see `at_size`.
    """

    name: str
    description: Description
    variables: Any
    digest: str
    forward: models.Forward | None = None
    resize: int | None = None

    @property
    def num_classes(self) -> int:
        """How many logits it has."""
        return self.description.num_classes

    def require_fit(self, dataset: Any) -> None:
        """Raises ValueError, saying what differs, unless the network fits a `jaxkd.data.Dataset`."""
        if self.num_classes != dataset.num_classes:
            raise ValueError(
                f"teacher {self.name} has {self.num_classes} classes and {dataset.name} has "
                f"{dataset.num_classes}; they must be the same: choose a teacher trained on {dataset.name}"
            )
        channels = self.description.image_shape[-1]
        if channels != dataset.image_shape[-1]:
            raise ValueError(
                f"teacher {self.name} takes images with {channels} channels, and those of {dataset.name} "
                f"have {dataset.image_shape[-1]}; choose a teacher trained on {dataset.name}"
            )
        own, others = self.description.image_shape[:2], tuple(dataset.image_shape[:2])
        if self.resize is None and own != others and self.description.model != "function":
            logging.getLogger("jaxkd").warning(
                "teacher %s was trained on images of %s and sees those of %s as they are, %s; "
                "--teacher-size %s (Teacher.at_size) resizes them",
                self.name, _by(own), dataset.name, _by(others), own[0],
            )  # fmt: skip

    def at_size(self, size: int) -> Teacher:
        """The same network, for images of any size: they are resized to its own, inside the compiled step.

        Args:
          size: height and width that it sees, pixels.

        Raises:
          ValueError: the size is not positive.

        >>> from jaxkd import teachers
        >>> small = teachers.load("digits-resnet20").at_size(8)
        >>> small.logits(jnp.zeros((1, 28, 28, 1), jnp.uint8)).shape
        (1, 10)
        """
        if size < 1:
            raise ValueError(f"the size of a teacher's images must be at least 1, got {size}")
        about = dataclasses.replace(
            self.description, image_shape=(size, size, self.description.image_shape[-1])
        )
        digest = storage.tree_digest({"network": np.frombuffer(self.digest.encode(), np.uint8), "size": size})
        return dataclasses.replace(self, description=about, digest=digest, resize=size)

    @functools.cached_property
    def frozen(self) -> tuple[models.Network, Any]:
        """What evaluates it fastest: a network, and its variables.

        Batch norm is folded into the convolutions of the package's own models.
        """
        about, forward, variables = self.description, self.forward, self.variables
        if forward is None:
            # Not in the trace of whoever calls: the arrays are kept.
            with jax.ensure_compile_time_eval():
                folded, variables = models.fold(about.create_model(), self.variables, about.image_shape)
            forward = models.Evaluated(folded)
        if self.resize is not None:
            forward = _Resized(forward, self.resize)
        return models.Network(self.name, forward, about.mean, about.std), variables

    def logits(self, images: jax.typing.ArrayLike, *, normalized: bool = False) -> jax.Array:
        """The logits `[B, K]` of images.

        Args:
          images: uint8 `[B, H, W, C]`, or floats that are normalised: `(pixel / 255 - mean) / std`.
          normalized: says so of floats that lie in [0, 1], which are refused otherwise.
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
            raise TypeError(f"images must be uint8, or floats that are normalised, got {images.dtype}")
        changes = any(self.description.mean) or set(self.description.std) != {1.0}
        if changes and not normalized and images.dtype != jnp.uint8 and _look_like_pixels(images):
            raise ValueError(
                "images are floats from 0 to 1, which look like pixels / 255 and not like normalised ones; "
                "pass uint8 pixels, or say normalized=True"
            )
        return self._apply(self.frozen[1], images)

    @functools.cached_property
    def _apply(self) -> Callable[[Any, jax.Array], models.Outputs]:
        network, _ = self.frozen
        return jax.jit(lambda variables, images: network.apply(variables, images)[0])


@dataclasses.dataclass(frozen=True)
class _Resized:
    """A network's functions, for images that are resized first; bilinear, with antialiasing."""

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


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _look_like_pixels(images: jax.Array) -> bool:
    """Whether floats fill [0, 1]; False for arrays that are traced, whose values nobody knows."""
    if isinstance(images, jax.core.Tracer) or not images.size:
        return False
    low, high = float(images.min()), float(images.max())
    return 0 <= low < high <= 1


@dataclasses.dataclass(frozen=True)
class _Function:
    """Any function of images in the place of a module; see `from_function`."""

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
    """Makes a teacher of any function: another Flax network, an ensemble, a remote service.

    Args:
      function: `(images) -> logits`, or `(variables, images) -> logits` if there are variables.  Images come
        as normalised floats `[B, H, W, C]`; what it returns is logits `[B, K]`, an `Outputs`, or anything
        with `.logits`.
      num_classes: number of logits, K.
      variables: arrays that the function needs, as a tree.  Arrays that it holds in a closure are compiled
        into the program instead, which costs memory.
      image_shape: height, width and channels.
      mean: of each channel, for normalisation; by default 0, and so pixels reach the function in [0, 1].
      std: likewise; by default 1.
      name: for tables; a run is told apart from others by it and by the variables.
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
    digest = storage.tree_digest({name: variables})
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
    """Makes a teacher of a Flax Linen module, an NNX module or a `Network`, and its variables.

    Args:
      network: what `models.as_network` takes, but for a name.
      variables: by collection, as the network's `init` gives them.
      image_shape: height, width and channels.
      mean: of each channel of pixels in [0, 1], for normalisation; by default the network's own, or 0.
      std: likewise; by default the network's own, or 1.
      name: for tables; by default the network's.
      data: the data set that it was trained on.

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
    channels = image_shape[-1]
    outputs = made.output_shapes(dict(variables), image_shape)
    description = Description(
        model=made.name,
        num_classes=outputs.logits.shape[-1],
        image_shape=image_shape,
        mean=tuple(mean or made.mean or (0.0,) * channels),
        std=tuple(std or made.std or (1.0,) * channels),
        data=data,
        source="an own network",
        own=True,
    )
    digest = storage.tree_digest(dict(variables))
    return Teacher(name or made.name, description, dict(variables), digest, made.forward)


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
) -> Teacher:
    """Makes a teacher of a Flax Linen or NNX checkpoint that another program saved.

    Args:
      path: an Orbax folder (of a checkpointer, or of a manager: then its last step), or a Flax msgpack file.
        Optimiser states and whatever else is in it do not disturb.
      network: a Flax Linen module, an NNX module, a `Network`, or a name of `models.names()`.
      image_shape: height, width and channels.
      num_classes: number of logits, for a name.
      prefix: where in the checkpoint the variables lie, such as "ema"; by default the only place where they
        fit.
      mean: of each channel of pixels in [0, 1], for normalisation; by default the network's own, or 0.
      std: likewise; by default the network's own, or 1.
      name: for tables; by default the network's.
      data: the data set that it was trained on.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: it is no checkpoint, or the network's variables are not in it, or in several places.
    """
    made = models.as_network(network, num_classes)
    shapes = jax.eval_shape(lambda: made.init(0, image_shape))
    try:
        variables = foreign.find(foreign.read(Path(path)), shapes, prefix=prefix)
    except ValueError as error:
        raise ValueError(f"{path} as {made.name}: {error}") from None
    teacher = from_network(made, variables, image_shape=image_shape, mean=mean, std=std, name=name, data=data)
    about = dataclasses.replace(
        teacher.description, source=f"from the checkpoint {Path(path).name}", own=not isinstance(network, str)
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
    """Makes a teacher of a Keras 3 model whose last layer gives logits.

    With Keras's JAX backend the model is traced into the training step, and its weights are variables of it.
    With another backend it is called from inside the step, on the host.

    Args:
      model: a `keras.Model` of one image and one output, `[B, H, W, C]` to `[B, K]`.
      mean: of each channel of pixels in [0, 1], for normalisation; by default 0.
      std: likewise; by default 1, so that pixels reach the model in [0, 1].  Models that take pixels from 0
        to 255 (those with a `Rescaling` layer): `std=(1 / 255,) * 3`.
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
            f"the model ends in a {activation}, and a teacher gives logits; take it away with "
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


def zoo() -> Path:
    """The folder where teachers are looked up by name: `$JAXKD_TEACHERS`, or `~/.cache/jaxkd/teachers`."""
    return place(os.environ.get("JAXKD_TEACHERS") or cache_folder() / "teachers")


def save(folder: str | Path, variables: Mapping[str, Any], description: Description) -> None:
    """Saves a network as a teacher.

    Args:
      folder: where; it is made, and a teacher that is there is replaced, whole or not at all.
      variables: `{"params": ..., "batch_stats": ...}`.
      description: what they are.

    Raises:
      ValueError: the folder holds something else than a teacher, which stays; or the teacher is a function.
      OSError: it cannot be written.
    """
    if description.model == "function":
        raise ValueError(
            "a teacher made by from_function cannot be saved, since its code is in no file; build it from a "
            "Flax module with from_network"
        )
    with storage.replacing(place(folder), teacher_files.is_teacher) as new:
        digest = storage.save_tree(new / teacher_files.VARIABLES, dict(variables))
        files = storage.file_digests(new / teacher_files.VARIABLES)
        teacher_files.write(new, dataclasses.asdict(description), digest, files)


def locate(path_or_name: str | Path) -> Path:
    """Finds the folder of a teacher, writing nothing; arguments and errors are those of `load`."""
    named = place(path_or_name)
    candidates = [named, named / "model"]
    if not is_remote(named):
        candidates += [zoo() / path_or_name, _SHIPPED / path_or_name]
    for folder in candidates:
        if (current(folder) / teacher_files.DESCRIPTION).is_file():
            return folder
    raise FileNotFoundError(
        f'no teacher "{path_or_name}": looked for {teacher_files.DESCRIPTION} in '
        f"{', '.join(map(str, candidates))}; "
        "`jaxkd teachers` lists those with names, `jaxkd train` makes one, and `jaxkd import` brings one"
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """A teacher's folder as it stands there, its weights unread.

    Attributes:
      name: for tables.
      folder: where it is.
      description: what it says of the teacher.
      digest: of the variables.
      files: digests of the variables' files, if it has them.
    """

    name: str
    folder: Path
    description: Description
    digest: str
    files: Mapping[str, str] | None = None


def describe(path_or_name: str | Path) -> Entry:
    """Reads what a teacher's folder says of it; arguments and errors are those of `load`."""
    folder = locate(path_or_name)
    return storage.reading(folder, lambda there: _entry(folder, there))


def _entry(folder: Path, there: Path) -> Entry:
    """The entry of a folder, whose contents lie `there`."""
    stored = teacher_files.read(there)
    try:
        description = Description(**stored.fields)
    except ValueError as error:
        raise storage.DamagedError(f"{folder / teacher_files.DESCRIPTION} is damaged: {error}") from None
    # A run keeps its network in a folder `model`, and is itself what people gave a name to.
    name = folder.parent.name if folder.name == "model" else folder.name
    return Entry(name, folder, description, stored.digest, stored.files)


def load(path_or_name: str | Path, *, network: models.Like | None = None, method: Any = None) -> Teacher:
    """Loads a teacher.

    Args:
      path_or_name: the folder of a teacher, the folder of a run that trained one, a name in the zoo, or
        `hf:OWNER/NAME` for weights on the Hugging Face Hub that say what they are (see `jaxkd.hub`).
      network: the network itself, for one that is none of `models.names()`: a Flax Linen or NNX module, or a
        `Network`.
      method: the `Method` itself, if one that is none of `methods.names()` answers in the network's place.

    Returns:
      The teacher: `.logits(images)`, `.features(images)`, `.name`, `.num_classes`.

    Raises:
      FileNotFoundError: there is no teacher there.
      ValueError: it is damaged, of a format that this version does not know, or of an own network that is
        not given.
      OSError: it cannot be read now.

    >>> import jax.numpy as jnp
    >>> from jaxkd import teachers
    >>> teacher = teachers.load("digits-resnet20")
    >>> teacher.logits(jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape
    (2, 10)
    """
    if hub.is_address(path_or_name):
        return _from_hub(str(path_or_name))
    folder = locate(path_or_name)

    def read(there: Path) -> Teacher:
        entry = _entry(folder, there)
        about = entry.description
        forward: Any = None
        if about.own:
            if network is None:
                raise ValueError(
                    f"{folder} holds the weights of an own network, {about.model}; "
                    f"load it with teachers.load({str(path_or_name)!r}, network=...)"
                )
            forward = models.as_network(network, about.num_classes).forward
            shapes = jax.eval_shape(lambda: forward.init(0, about.image_shape))
        elif about.method:
            forward = models.from_linen(about.create_model()).forward
        else:
            try:
                shapes = _shapes(about.create_model(), about.image_shape)
            except ValueError as error:
                raise ValueError(f"{folder / teacher_files.DESCRIPTION}: {error}") from None
        if about.method:
            forward, shapes = models.Evaluated(_Answering(forward, _method(folder, about, method))), None
        stored = there / teacher_files.VARIABLES
        if entry.files is None:
            variables = storage.load_tree(stored, shapes, entry.digest)
        else:
            with storage.checked_copy(stored, entry.files) as copy:
                variables = storage.load_tree(copy, shapes, entry.digest, checked=True, name=stored)
        return Teacher(entry.name, about, variables, entry.digest, forward)

    return storage.reading(folder, read)


def _from_hub(address: str) -> Teacher:
    """A teacher of a repository that says what it holds."""
    about = described_in(address)
    if about is None:
        raise ValueError(
            f"{address} does not say what it is; import it: jaxkd import {address} --model NAME --data NAME"
        )
    variables = import_torch(
        address,
        model=about.model,
        num_classes=about.num_classes,
        image_shape=about.image_shape,
        **about.model_options,
    )
    name = address.removeprefix(hub.PREFIX).partition("@")[0].split("/")[1]
    return Teacher(name, about, variables, storage.tree_digest(variables))


@dataclasses.dataclass(frozen=True)
class _Answering:
    """A network, and a method that answers in its place; variables `{"student": ..., "method": ...}`."""

    forward: Any
    method: Any

    def apply(self, variables: Any, images: jax.Array) -> models.Outputs:
        outputs, _ = self.forward(variables["student"], images, train=False, where=None, rngs=None)
        logits = self.method.apply(variables["method"], outputs, method="predict")
        return models.Outputs(logits, outputs.features)


def _method(folder: Path, about: Description, given: Any) -> Any:
    from jaxkd import methods

    if given is None and about.method["name"] not in methods.names():
        raise ValueError(
            f"in {folder} the method {about.method['name']} of your own answers; load it with "
            f"teachers.load({str(folder)!r}, method=...)"
        )
    return given or methods.create(about.method["name"], **about.method["options"])


def available() -> list[Entry]:
    """The teachers in the zoo and in the package; unreadable ones are named in a warning and left out.

    >>> from jaxkd import teachers
    >>> "digits-resnet20" in [entry.name for entry in teachers.available()]
    True
    """
    return [entry for entry in survey().values() if isinstance(entry, Entry)]


def survey() -> dict[Path, Entry | str]:
    """Every folder in the zoo and in the package that should be a teacher: its entry, or what is wrong."""
    found: dict[Path, Entry | str] = {}
    for root in (zoo(), _SHIPPED):
        for folder in (root / name for name in names_in(root)):
            if not (current(folder) / teacher_files.DESCRIPTION).is_file():
                continue
            try:
                found[folder] = describe(folder)
            except (ValueError, OSError) as error:
                logging.getLogger("jaxkd").warning("skipping %s: %s", folder, error)
                found[folder] = str(error)
    return found


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
    """Reads the weights of a PyTorch network, without PyTorch and without running what is in the file.

    Args:
      file: a PyTorch file, `.safetensors` or `.npz`, or `hf:OWNER/NAME` on the Hugging Face Hub, with the
        parameter names of RepDistiller, mdistiller, the ResNets of pytorch-cifar-models or pytorch-cifar, or
        torchvision's and timm's ResNets for `imagenet_resnet*`.
      model: the architecture's name in `jaxkd.models`.
      num_classes: number of logits.
      image_shape: height, width and channels of its images.
      rename: words in the file's names to the model's, such as `{"stage_1": "layer1", "conv": "conv1"}`:
        whole words between dots, or several joined with dots.
      prefix: where in the file the weights lie, if they fit in several places.
      **model_options: what else `models.create` needs, such as `shortcut="A"`.

    Returns:
      Flax variables, ready for `models.create(model, num_classes, **model_options).apply`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged or unsafe, or its weights do not fit the model (all misfits are listed).
    """
    file, given = hub.local(file), file
    contents, texts = torch_files.read(file), torch_files.read_metadata(file)
    if _CHECKSUM in texts and texts[_CHECKSUM] != _checksum(texts.get(_METADATA, ""), contents):
        raise storage.DamagedError(f"{file} is damaged: checksum mismatch; export the teacher again")
    try:
        shapes = _shapes(models.create(model, num_classes, **model_options), image_shape)
        weights = torch_find.find(contents, shapes, rename=rename, prefix=prefix)
        return torch_names.to_flax(weights, shapes)
    except ValueError as error:
        raise ValueError(f"{given} as {model} with {num_classes} classes: {error}") from None


def export_torch(teacher: Teacher, file: str | Path) -> None:
    """Writes a teacher's weights under the names and in the layout of PyTorch code.

    The description travels in the file's metadata, so that `jaxkd import` needs to be told nothing, and gives
    the same bits back.

    Args:
      teacher: with one of the package's models.
      file: a `.safetensors` file to write; torch reads it with `safetensors.torch.load_file`.

    Raises:
      ValueError: the ending is another, or the teacher is a function.
    """
    if teacher.forward is not None:
        other = teacher.description.method
        what = f"answers through {other['name']}" if other else "is a function"
        raise ValueError(f"teacher {teacher.name} {what}; only the package's models can be exported")
    about, weights = (
        json.dumps(dataclasses.asdict(teacher.description)),
        torch_names.to_torch(teacher.variables),
    )
    torch_files.write(file, weights, {_METADATA: about, _CHECKSUM: _checksum(about, weights)})


def _checksum(about: str, weights: Mapping[str, Any]) -> str:
    """SHA-256 of what an exported file holds: the description, as text, and the weights."""
    return storage.tree_digest(
        {"description": np.frombuffer(about.encode(), np.uint8), "weights": dict(weights)}
    )


def described_in(file: str | Path) -> Description | None:
    """What a file of weights says of itself; None if it says nothing.

    Args:
      file: one that `export_torch` wrote, or one with timm's `config.json` beside it, or `hf:OWNER/NAME`.

    Raises:
      ValueError: what it says is wrong, or of an architecture that is not here.
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


def _shapes(network: Any, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The shapes of a network's variables, in the order in which its layers are made."""
    order: list[tuple[str, ...]] = []

    def init(key: jax.Array, images: jax.Array) -> Any:
        variables = network.init(key, images)
        order.extend(flatten_dict(dict(variables)))
        return variables

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = flatten_dict(dict(jax.eval_shape(init, jax.random.key(0), images)))  # which sorts them
    return unflatten_dict({path: shapes[path] for path in order})
