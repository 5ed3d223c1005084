"""Augmentations: views of an image for training, as pure functions of a key.

A run maps the names of views to augmentations, and the key of a view is a function of (seed, view, epoch,
example id).  So the same pixels come out on one device or eight, in a first run or a resumed one, alone or in
a batch.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxkd._names import kind

MAIN = "main"


@runtime_checkable
class Augmentation(Protocol):
    """A frozen dataclass that maps (key, image) to an image of the same shape.

    An augmentation whose outcomes can be numbered also has `count`, `index(key)` from 0 to count - 1, and
    `take(image, index)`.  It must hold that `augment(key, image)` is `take(image, index(key))`.  Only then a
    cache can hold a teacher's logits of all outcomes.
    """

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Augments one image, uint8 `[H, W, C]`; it is mapped over a batch by `jax.vmap`."""
        ...


@runtime_checkable
class Numbered(Augmentation, Protocol):
    """An augmentation with a finite number of outcomes; see `Augmentation`."""

    @property
    def count(self) -> int:
        """The number of outcomes."""
        ...

    def index(self, key: jax.Array) -> jax.Array:
        """The outcome of a key, an int32 scalar."""
        ...

    def take(self, image: jax.Array, index: jax.Array) -> jax.Array:
        """An outcome by number."""
        ...


@dataclasses.dataclass(frozen=True)
class CropFlip:
    """Zero padding with a random crop, and a random horizontal flip: the literature's, for small images.

    Attributes:
      padding: pixels of zeros (black, as in torchvision) on each side before the crop.
      flip: whether half of the images are mirrored.

    An outcome's number is `(y * offsets + x) * 2 + mirrored`, with the crop's upper left corner in the padded
    image; `y * offsets + x` without flips.

    >>> CropFlip(padding=4, flip=True).count
    162
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0 pixels, got {self.padding}")

    def changed(self, padding: int | None, flip: bool | None) -> CropFlip:
        """This augmentation, with the given values."""
        return CropFlip(self.padding if padding is None else padding, self.flip if flip is None else flip)

    @property
    def offsets(self) -> int:
        """How many places the crop can be shifted to, along each axis."""
        return 2 * self.padding + 1

    @property
    def count(self) -> int:
        """The number of outcomes."""
        return self.offsets**2 * (2 if self.flip else 1)

    def index(self, key: jax.Array) -> jax.Array:
        """See `Numbered`."""
        crop_key, flip_key = jax.random.split(key)
        index = jnp.zeros((), jnp.int32)
        if self.padding:
            y, x = jax.random.randint(crop_key, (2,), 0, self.offsets, jnp.int32)
            index = y * self.offsets + x
        if self.flip:
            index = 2 * index + jax.random.bernoulli(flip_key, jnp.float32(0.5)).astype(jnp.int32)
        return index

    def take(self, image: jax.Array, index: jax.Array) -> jax.Array:
        """See `Numbered`.

        >>> image = jnp.arange(1, 5, dtype=jnp.uint8).reshape(2, 2, 1)
        >>> CropFlip(padding=1).take(image, jnp.array(9))[:, :, 0].tolist()  # y 1, x 1, mirrored
        [[2, 1], [4, 3]]
        """
        corner = index // 2 if self.flip else index
        if self.padding:
            pad = self.padding
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = jax.lax.dynamic_slice(
                padded, (corner // self.offsets, corner % self.offsets, jnp.zeros_like(corner)), image.shape
            )
        if self.flip:
            image = jnp.where(index % 2 == 1, image[:, ::-1], image)
        return image

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """See `Augmentation`."""
        return self.take(image, self.index(key))


@dataclasses.dataclass(frozen=True)
class Identity:
    """No augmentation."""

    count: int = dataclasses.field(default=1, init=False)

    def index(self, key: jax.Array) -> jax.Array:
        """See `Numbered`."""
        return jnp.zeros((), jnp.int32)

    def take(self, image: jax.Array, index: jax.Array) -> jax.Array:
        """See `Numbered`."""
        return image

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """See `Augmentation`."""
        return image


@dataclasses.dataclass(frozen=True)
class Compose:
    """Augmentations in sequence, each with its own key.

    >>> Compose((CropFlip(1, False), Identity()))(jax.random.key(0), jnp.ones((2, 2, 1), jnp.uint8)).shape
    (2, 2, 1)
    """

    parts: tuple[Augmentation, ...]

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """See `Augmentation`."""
        for part, own in zip(self.parts, jax.random.split(key, len(self.parts)), strict=True):
            image = part(own, image)
        return image


def is_numbered(augmentation: Augmentation) -> bool:
    """Whether an augmentation's outcomes can be numbered, so that a cache can hold them."""
    return isinstance(augmentation, Numbered)


def stream_key(seed: jax.typing.ArrayLike, stream: str) -> jax.Array:
    """The key of one use of randomness in a run: two streams of one seed have nothing in common.

    Always threefry, whatever the process's default: the numbers of others (rbg) depend on the batch that they
    are drawn in, and on the platform.

    >>> bool((stream_key(0, "views") == stream_key(0, "dropout")).any())
    False
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(stream.encode()))


def example_keys(
    ids: jax.Array, *, seed: jax.typing.ArrayLike, epoch: jax.typing.ArrayLike, view: str = MAIN
) -> jax.Array:
    """A key for each example's view in one epoch.

    Args:
      ids: example ids, int32 `[B]`.
      seed: the run's seed.
      epoch: the epoch, from 1.
      view: the view's name.
    """
    key = jax.random.fold_in(stream_key(seed, "views" if view == MAIN else f"views/{view}"), epoch)
    return jax.vmap(lambda example_id: jax.random.fold_in(key, example_id))(ids)


def augment(
    augmentation: Augmentation,
    images: jax.Array,
    ids: jax.Array,
    *,
    seed: jax.typing.ArrayLike,
    epoch: jax.typing.ArrayLike,
    view: str = MAIN,
) -> jax.Array:
    """The views of some images in one epoch.

    Args:
      augmentation: of the view.
      images: uint8, `[B, H, W, C]`.
      ids: example ids, int32 `[B]`: an image's view depends on its own id, not on its place in the batch.
      seed: the run's seed.
      epoch: the epoch, from 1.
      view: the view's name: two views of an image are drawn independently.

    Returns:
      uint8, `[B, H, W, C]`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import data
    >>> images, crop = jnp.arange(2 * 3 * 3, dtype=jnp.uint8).reshape(2, 3, 3, 1), data.CropFlip(padding=1)
    >>> two = data.augment(crop, images, jnp.array([7, 9]), seed=0, epoch=1)
    >>> one = data.augment(crop, images[1:], jnp.array([9]), seed=0, epoch=1)
    >>> bool((two[1] == one[0]).all())
    True
    """
    return jax.vmap(augmentation)(example_keys(ids, seed=seed, epoch=epoch, view=view), images)


def outcomes(
    augmentation: Numbered, ids: jax.Array, *, seed: jax.typing.ArrayLike, epoch: jax.typing.ArrayLike
) -> jax.Array:
    """The number of what each example shows on the view "main" in one epoch, int32 `[B]`; args as `augment`.

    >>> import jax.numpy as jnp
    >>> from jaxkd import data
    >>> data.outcomes(data.Identity(), jnp.arange(3), seed=0, epoch=1).tolist()
    [0, 0, 0]
    """
    return jax.vmap(augmentation.index)(example_keys(ids, seed=seed, epoch=epoch))


def as_views(
    given: Any,
    views: tuple[str, ...],
    default: Augmentation,
    image_shape: tuple[int, int, int],
    of_view: Callable[[str, Augmentation], Augmentation] = lambda _, main: main,
) -> dict[str, Augmentation]:
    """The augmentation of each view that a method wants.

    Args:
      given: an augmentation for the view "main", or a mapping of view names to augmentations; None for none.
      views: the names of the views.
      default: for the view "main", if none is given.
      image_shape: height, width, channels of the training images.
      of_view: gives that of another view without one, from its name and the augmentation of "main".

    Raises:
      ValueError: one of a view that the method does not have, or one that does not return what it must.
      TypeError: it is no augmentation.
    """
    named = dict(given) if isinstance(given, Mapping) else {} if given is None else {MAIN: given}
    if unknown := sorted(named.keys() - set(views)):
        raise ValueError(f"no view {', '.join(unknown)}: the method has the views {', '.join(views)}")
    named = {MAIN: default, **named}
    image = jax.ShapeDtypeStruct(image_shape, jnp.uint8)
    for name, augmentation in named.items():
        called_as = f"the augmentation of view {name} must be called as augmentation(key, image)"
        if isinstance(augmentation, type) or not isinstance(augmentation, Augmentation):
            raise TypeError(f"{called_as}, got {kind(augmentation)}")
        try:
            made = jax.eval_shape(lambda image, one=augmentation: one(stream_key(0, "views"), image), image)
        except TypeError as error:
            error.add_note(called_as)
            raise
        if [getattr(made, name, None) for name in ("shape", "dtype")] != [image_shape, jnp.uint8]:
            raise ValueError(
                f"the augmentation of view {name} must return an image like the one it gets, {image}, got "
                f"{made}; end it with jnp.clip(image, 0, 255).astype(jnp.uint8)"
            )
    return {view: named.get(view) or of_view(view, named[MAIN]) for view in views}
