"""The views of an image: crop and flip as a pure function of (seed, epoch, example id).

The same pixels come out on one device or eight, in a first run or a resumed one, alone or in a batch.
"""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class View:
    """What training does to an image: zero padding with a random crop, and a random horizontal flip."""

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0 pixels, got {self.padding}")

    def changed(self, padding: int | None, flip: bool | None) -> View:
        """This view, with what is given in place of its own."""
        return View(self.padding if padding is None else padding, self.flip if flip is None else flip)

    @property
    def offsets(self) -> int:
        """How many places the crop can be shifted to, along each axis."""
        return 2 * self.padding + 1

    @property
    def count(self) -> int:
        """How many views an image has.

        >>> View(padding=4, flip=True).count
        162
        """
        return self.offsets**2 * (2 if self.flip else 1)


def stream_key(seed: jax.typing.ArrayLike, stream: str) -> jax.Array:
    """The key of one use of randomness in a run: two streams of one seed have nothing in common.

    Always threefry, whatever the process's default: the numbers of others (rbg) depend on the batch that they
    are drawn in, and on the platform.

    >>> bool((stream_key(0, "views") == stream_key(0, "dropout")).any())
    False
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(stream.encode()))


def view_indices(
    ids: jax.Array, *, seed: jax.typing.ArrayLike, epoch: jax.typing.ArrayLike, view: View
) -> jax.Array:
    """Which of its views each example shows in one epoch: the draw behind `view_images`.

    Args:
      ids: example ids, int32 `[B]`: an example's view depends on its own id, not on its place in the batch.
      seed: the run's seed.
      epoch: the epoch, from 1.
      view: how far to crop, and whether to flip.

    Returns:
      int32 `[B]`, from 0 to `view.count - 1`; `take_views` says which view a number stands for.

    >>> import jax.numpy as jnp
    >>> from jaxkd import data
    >>> data.view_indices(jnp.arange(3), seed=0, epoch=1, view=data.View(padding=0, flip=False)).tolist()
    [0, 0, 0]
    """
    key = jax.random.fold_in(stream_key(seed, "views"), epoch)

    def one(example_id: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, example_id))
        index = jnp.zeros((), jnp.int32)
        if view.padding:
            y, x = jax.random.randint(crop_key, (2,), 0, view.offsets)
            index = y * view.offsets + x
        if view.flip:
            index = 2 * index + jax.random.bernoulli(flip_key).astype(jnp.int32)
        return index

    return jax.vmap(one)(ids)


def take_views(images: jax.Array, indices: jax.Array, view: View) -> jax.Array:
    """The views of the given numbers.

    Args:
      images: uint8, `[B, H, W, C]`.
      indices: a view's number for each image, int32 `[B]`: `(y * offsets + x) * 2 + mirrored`, the crop's
        upper left corner in the padded image and whether it is mirrored; `y * offsets + x` without flips.
      view: how far to crop, and whether to flip.

    Returns:
      uint8, `[B, H, W, C]`; pixels from outside the image are 0 (black), as in torchvision.

    >>> import jax.numpy as jnp
    >>> from jaxkd import data
    >>> image = jnp.arange(1, 5, dtype=jnp.uint8).reshape(1, 2, 2, 1)
    >>> shown = data.take_views(image, jnp.array([9]), data.View(padding=1))  # y 1, x 1, mirrored
    >>> shown[0, :, :, 0].tolist()
    [[2, 1], [4, 3]]
    """

    def one(image: jax.Array, index: jax.Array) -> jax.Array:
        corner = index // 2 if view.flip else index
        if view.padding:
            pad = view.padding
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = jax.lax.dynamic_slice(
                padded, (corner // view.offsets, corner % view.offsets, 0), image.shape
            )
        if view.flip:
            image = jnp.where(index % 2 == 1, image[:, ::-1], image)
        return image

    return jax.vmap(one)(images, indices)


def view_images(
    images: jax.Array, ids: jax.Array, *, seed: jax.typing.ArrayLike, epoch: jax.typing.ArrayLike, view: View
) -> jax.Array:
    """The views of some images in one epoch: `take_views` of `view_indices`.

    Args:
      images: uint8, `[B, H, W, C]`.
      ids: example ids, int32 `[B]`: an image's view depends on its own id, not on its place in the batch.
      seed: the run's seed.
      epoch: the epoch, from 1.
      view: how far to crop, and whether to flip.

    Returns:
      uint8, `[B, H, W, C]`; pixels from outside the image are 0 (black), as in torchvision.

    >>> import jax.numpy as jnp
    >>> from jaxkd import data
    >>> images = jnp.arange(2 * 3 * 3, dtype=jnp.uint8).reshape(2, 3, 3, 1)
    >>> two = data.view_images(images, jnp.array([7, 9]), seed=0, epoch=1, view=data.View(padding=1))
    >>> one = data.view_images(images[1:], jnp.array([9]), seed=0, epoch=1, view=data.View(padding=1))
    >>> bool((two[1] == one[0]).all())
    True
    """
    return take_views(images, view_indices(ids, seed=seed, epoch=epoch, view=view), view)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """`(x / 255 - mean) / std` by channel: uint8 `[B, H, W, C]` to float32.

    >>> import jax.numpy as jnp
    >>> from jaxkd import data
    >>> print(data.normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), (0.5,), (0.25,)).ravel())
    [2.]
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
