"""RandAugment: a few random operations on an image, and a hole: the strong view of MLKD.

Operations and ranges are those of the code of Jin et al. 2023, which has the pixels of Pillow: nearest
neighbours, black outside.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

_HOLE = (125.0, 123.0, 114.0)  # of colour images; the same as grey for others
_GREY = 123.0
_LUMA = (19595, 38470, 7471)  # in 65,536ths


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Operations drawn one after the other, then a square hole.

    Each is one of: identity, auto-contrast, equalise, posterise (4 to 7 bits), solarise (from a threshold in
    0 to 256), brightness, colour, contrast and sharpness (factors 0.05 to 0.95), rotation (30 degrees to
    either side), shear and translation along each axis (0.3 of the size to either side).

    Attributes:
      operations: how many are drawn, with replacement; each has a uniform magnitude.
      hole: the largest side of the hole, as a part of the width; 0 for none.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxkd import data
    >>> image = jnp.full((8, 8, 3), 100, jnp.uint8)
    >>> data.RandAugment()(jax.random.key(0), image).shape
    (8, 8, 3)

    Source: Cubuk et al. 2019 (arXiv 1909.13719); Jin et al. 2023, "Multi-Level Logit Distillation" (CVPR),
    the authors' code.
    """

    operations: int = 2
    hole: float = 0.5

    def __post_init__(self) -> None:
        if self.operations < 0 or not 0 <= self.hole <= 1:
            raise ValueError(
                "operations must be at least 0, and hole between 0 and 1, "
                f"got {self.operations} and {self.hole}"
            )

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """See `Augmentation`."""
        keys = jax.random.split(key, self.operations + 1)
        values = image.astype(jnp.float32)
        for own in keys[1:]:
            which, magnitude = jax.random.split(own)
            number = jax.random.randint(which, (), 0, len(NAMES), jnp.int32)
            values = operate(values, number, jax.random.uniform(magnitude, dtype=jnp.float32))
        if self.hole:
            values = _cut(keys[0], values, self.hole)
        return values.astype(jnp.uint8)


NAMES = (
    "auto_contrast", "brightness", "color", "contrast", "equalize", "identity", "posterize", "rotate",
    "sharpness", "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
)  # fmt: skip


def operate(image: jax.Array, number: jax.Array, magnitude: jax.Array) -> jax.Array:
    """One operation on an image of whole numbers 0 to 255, float32 `[H, W, C]`.

    Args:
      image: the pixels.
      number: the place of the operation in `NAMES`.
      magnitude: from 0 to 1, through the operation's range.
    """
    moved = _moved(image, number, magnitude)
    factor = 0.05 + 0.9 * magnitude
    blends = {
        "brightness": lambda: _blend(jnp.zeros_like(image), image, factor),
        "color": lambda: _blend(_grey(image), image, factor),
        "contrast": lambda: _blend(jnp.floor(jnp.mean(_grey(image)) + 0.5), image, factor),
        "sharpness": lambda: _blend(_smooth(image), image, factor),
        "auto_contrast": lambda: _auto_contrast(image),
        "equalize": lambda: _equalize(image),
        "posterize": lambda: _without_low_bits(image, 4 - jnp.floor(4 * magnitude)),
        "solarize": lambda: jnp.where(image < 256 * magnitude, image, 255 - image),
    }
    result = moved
    for name, made in blends.items():
        result = jnp.where(number == NAMES.index(name), made(), result)
    return result


def _moved(image: jax.Array, number: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Rotation, shear and translation, by the affine map from the result's pixels to the image's."""
    height, width, _ = image.shape
    signed = 2 * magnitude - 1
    angle = -math.radians(30) * signed
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    middle_x, middle_y = width / 2, height / 2
    zero, one = jnp.zeros(()), jnp.ones(())
    # Rows of (x, y, 1) -> x, and of (x, y, 1) -> y.
    maps = {
        "rotate": (
            (cos, sin, middle_x - cos * middle_x - sin * middle_y),
            (-sin, cos, middle_y + sin * middle_x - cos * middle_y),
        ),
        "shear_x": ((one, 0.3 * signed, zero), (zero, one, zero)),
        "shear_y": ((one, zero, zero), (0.3 * signed, one, zero)),
        "translate_x": ((one, zero, 0.3 * signed * width), (zero, one, zero)),
        "translate_y": ((one, zero, zero), (zero, one, 0.3 * signed * height)),
    }
    matrix = jnp.eye(2, 3)
    for name, rows in maps.items():
        matrix = jnp.where(number == NAMES.index(name), jnp.array(rows), matrix)
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    from_x = jnp.floor(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]).astype(jnp.int32)
    from_y = jnp.floor(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]).astype(jnp.int32)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    pixels = image[jnp.clip(from_y, 0, height - 1), jnp.clip(from_x, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, 0.0)


def _blend(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Between two images, cut off to whole numbers as Pillow does."""
    return jnp.floor(jnp.clip(other + factor * (image - other), 0, 255))


def _grey(image: jax.Array) -> jax.Array:
    """The luminance, whole numbers; grey images are their own."""
    if image.shape[-1] != len(_LUMA):
        return image
    return ((image.astype(jnp.int32) @ jnp.array(_LUMA) + 2**15) >> 16)[..., None].astype(image.dtype)


def _without_low_bits(image: jax.Array, bits: jax.Array) -> jax.Array:
    return jnp.floor(image / 2.0**bits) * 2.0**bits


def _smooth(image: jax.Array) -> jax.Array:
    """A 3x3 mean with five parts for the middle; the border stays."""
    height, width, _ = image.shape
    parts = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    inner = jnp.floor((parts + 4 * image[1:-1, 1:-1]) / 13 + 0.5)
    return image.at[1:-1, 1:-1].set(inner)


def _auto_contrast(image: jax.Array) -> jax.Array:
    """Each channel stretched to 0 to 255."""
    low, high = jnp.min(image, (0, 1)), jnp.max(image, (0, 1))
    scale = 255 / jnp.where(high > low, high - low, 255)
    stretched = jnp.floor(jnp.clip((image - low) * scale, 0, 255))
    return jnp.where(high > low, stretched, image)


def _equalize(image: jax.Array) -> jax.Array:
    """Each channel's histogram made even, with Pillow's rounding."""

    def of_channel(values: jax.Array) -> jax.Array:
        levels = values.astype(jnp.int32)
        counts = jnp.zeros(256, jnp.int32).at[levels.ravel()].add(1)
        below = jnp.cumsum(counts) - counts
        step = (levels.size - counts[jnp.max(levels)]) // 255
        table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[levels].astype(values.dtype), values)

    return jax.vmap(of_channel, in_axes=-1, out_axes=-1)(image)


def _cut(key: jax.Array, image: jax.Array, largest: float) -> jax.Array:
    """Fills a square with one colour; its centre is anywhere, so a part of it may be outside the image."""
    height, width, channels = image.shape
    of_side, of_x, of_y = jax.random.split(key, 3)
    side = jax.random.uniform(of_side, (), jnp.float32, maxval=largest) * width
    left = jnp.floor(jnp.maximum(jax.random.uniform(of_x, (), jnp.float32, maxval=width) - side / 2, 0))
    top = jnp.floor(jnp.maximum(jax.random.uniform(of_y, (), jnp.float32, maxval=height) - side / 2, 0))
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    hole = (x >= left) & (x <= left + side) & (y >= top) & (y <= top + side)
    color = jnp.array(_HOLE if channels == len(_HOLE) else (_GREY,) * channels)
    return jnp.where(hole[..., None], color, image)
