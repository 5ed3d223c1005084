"""RandAugment against Pillow, whose pixels the published code has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxkd import data
from jaxkd.data.rand_augment import NAMES, operate

SIZE = 32


def picture(channels: int) -> np.ndarray:
    rng = np.random.default_rng(channels)
    y, x = np.mgrid[:SIZE, :SIZE]
    smooth = np.stack([40 + 4 * x + y, 30 + 5 * y, 90 + 2 * x - 2 * y][:channels], -1)
    return np.clip(smooth + rng.integers(-20, 20, smooth.shape), 5, 250).astype(np.uint8)


def pillow(name: str, image: Image.Image, m: float) -> Image.Image:
    affine = {
        "shear_x": (1, 0.6 * m - 0.3, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.6 * m - 0.3, 1, 0),
        "translate_x": (1, 0, (0.6 * m - 0.3) * SIZE, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, (0.6 * m - 0.3) * SIZE),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    factor = 0.05 + 0.9 * m
    return {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "equalize": lambda: ImageOps.equalize(image),
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(4 + 4 * m)),
        "rotate": lambda: image.rotate(60 * m - 30),
        "solarize": lambda: ImageOps.solarize(image, 256 * m),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_has_pillows_pixels(name: str, channels: int) -> None:
    image = picture(channels)
    magnitudes = np.linspace(0.01, 0.99, 6)
    number = NAMES.index(name)
    ours = jax.jit(jax.vmap(lambda m: operate(jnp.float32(image), number, m)))(np.float32(magnitudes))
    for mine, m in zip(np.asarray(ours), magnitudes, strict=True):
        theirs = np.asarray(pillow(name, Image.fromarray(image.squeeze()), m)).reshape(image.shape)
        difference = np.abs(mine - theirs)
        # Rounding: a grey level, or for a rotation which of two neighbours a pixel's middle falls on.
        assert np.mean(difference > 1) < 0.005, (m, difference.max())
        assert np.mean(difference > 0) < 0.05


def test_it_is_a_function_of_the_key_and_moves_every_operation() -> None:
    image = jnp.asarray(picture(3))
    keys = jax.random.split(jax.random.key(0), 200)
    views = np.asarray(jax.jit(jax.vmap(data.RandAugment(), in_axes=(0, None)))(keys, image))
    assert views.dtype == np.uint8
    np.testing.assert_array_equal(views[7], jax.jit(data.RandAugment())(keys[7], image))
    assert len(np.unique(views.reshape(200, -1), axis=0)) > 190
    hole = (views == (125, 123, 114)).all(-1).reshape(200, -1)
    assert hole.sum(1).max() <= 17**2
    assert (hole.sum(1) > 0).mean() > 0.9
    same = jax.jit(jax.vmap(data.RandAugment(operations=0, hole=0.0), in_axes=(0, None)))(keys[:2], image)
    np.testing.assert_array_equal(same[0], image)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="operations must be at least 0, and hole between 0 and 1, got -1"):
        data.RandAugment(operations=-1)
